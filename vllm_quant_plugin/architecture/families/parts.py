"""The pieces that decoder layers are made of, as lists of ``Parameter``. No torch.

Names are the checkpoint's, sharding is vLLM's (``QKVParallelLinear``, ``MergedColumnParallelLinear``,
``RowParallelLinear``, ``FusedMoE``, ``VocabParallelEmbedding`` in model_executor/layers).
"""

from __future__ import annotations

from dataclasses import dataclass

from vllm_quant_plugin.architecture.arch import Fused, Parameter, Role, TpRule


def linear(
    name: str, out_features: int, in_features: int, role: Role, *, bias: bool = False, heads: int = 0, count: int = 1,
    fused: Fused = "",
) -> list[Parameter]:  # fmt: skip
    """A linear module: its weight and, with ``bias``, its bias (which row parallelism keeps whole)."""
    found = [Parameter(f"{name}.weight", (out_features, in_features), role, heads, count, linear=True, fused=fused)]
    if bias:
        found.append(Parameter(f"{name}.bias", (out_features,), "replicated" if role == "row" else role, heads, count))
    return found


def norm(name: str, width: int, *, bias: bool = False, role: Role = "replicated", heads: int = 0) -> list[Parameter]:
    found = [Parameter(f"{name}.weight", (width,), role, heads)]
    return [*found, Parameter(f"{name}.bias", (width,), role, heads)] if bias else found


def vector(name: str, width: int, role: Role = "replicated", *, itemsize: int = 0, count: int = 1) -> Parameter:
    return Parameter(name, (width,), role, itemsize=itemsize, count=count)


def embedding(name: str, vocab: int, hidden: int) -> Parameter:
    return Parameter(f"{name}.weight", (vocab, hidden), "vocab")


def head(name: str, vocab: int, hidden: int, *, bias: bool = False) -> list[Parameter]:
    """lm_head: cut like the embedding, but a scheme may apply to it."""
    found = [Parameter(f"{name}.weight", (vocab, hidden), "vocab", linear=True)]
    return [*found, Parameter(f"{name}.bias", (vocab,), "vocab")] if bias else found


@dataclass(frozen=True)
class Attention:
    """Grouped-query attention of one layer.

    Attributes:
        qk_norm: "" none, ``head`` one norm of head_dim shared by the heads, ``full`` one over all heads
            and whole on each rank, ``sharded`` one over all heads and cut with them.
        gated: the query projection also makes a gate of the same width.
    """

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    head_dim_v: int
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm: str = ""
    norm_bias: bool = False
    names: tuple[str, str, str, str] = ("q_proj", "k_proj", "v_proj", "o_proj")
    norm_names: tuple[str, str] = ("q_norm", "k_norm")
    gated: bool = False

    def parameters(self, prefix: str) -> list[Parameter]:
        q, k, v, o = (f"{prefix}.{name}" for name in self.names)
        found = [
            *linear(
                q,
                self.heads * self.head_dim * (1 + self.gated),
                self.hidden,
                "column",
                bias=self.qkv_bias,
                fused="first",
            ),
            *linear(
                k,
                self.kv_heads * self.head_dim,
                self.hidden,
                "kv",
                bias=self.qkv_bias,
                heads=self.kv_heads,
                fused="next",
            ),
            *linear(
                v,
                self.kv_heads * self.head_dim_v,
                self.hidden,
                "kv",
                bias=self.qkv_bias,
                heads=self.kv_heads,
                fused="next",
            ),
            *linear(o, self.hidden, self.heads * self.head_dim_v, "row", bias=self.o_bias),
        ]
        for name, heads in zip(self.norm_names, (self.heads, self.kv_heads), strict=True):
            if self.qk_norm == "head":
                found += norm(f"{prefix}.{name}", self.head_dim, bias=self.norm_bias)
            elif self.qk_norm == "full":
                found += norm(f"{prefix}.{name}", heads * self.head_dim, bias=self.norm_bias)
            elif self.qk_norm == "sharded":
                role: Role = "column" if name == self.norm_names[0] else "kv"
                found += norm(f"{prefix}.{name}", heads * self.head_dim, role=role, heads=heads, bias=self.norm_bias)
        return found

    def rules(self) -> list[TpRule]:
        return [TpRule("attention heads", self.heads), TpRule("KV heads", self.kv_heads, replicable=True)]


def mlp(
    prefix: str, hidden: int, inner: int, *, gated: bool = True, bias: bool = False,
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"), replicated: bool = False,
    whole: bool = False,
) -> list[Parameter]:  # fmt: skip
    """A gated (gate, up, down) or plain (up, down) feed-forward.

    Args:
        whole: vLLM holds gate and up as one matrix, not as two that it fuses.
    """
    if gated and whole:
        return [
            *linear(f"{prefix}.{names[1]}", 2 * inner, hidden, "column", bias=bias),
            *linear(f"{prefix}.{names[2]}", hidden, inner, "row", bias=bias),
        ]
    column: Role = "replicated" if replicated else "column"
    row: Role = "replicated" if replicated else "row"
    gate = linear(f"{prefix}.{names[0]}", inner, hidden, column, bias=bias, fused="first") if gated else []
    return [
        *gate,
        *linear(f"{prefix}.{names[1]}", inner, hidden, column, bias=bias, fused="next" if gated else ""),
        *linear(f"{prefix}.{names[2]}", hidden, inner, row, bias=bias),
    ]


def experts(
    prefix: str, count: int, hidden: int, inner: int, *, gated: bool = True, bias: bool = False,
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
) -> list[Parameter]:  # fmt: skip
    """The routed experts of one layer; the name carries expert 0 for all of them."""
    stem = f"{prefix}.experts.0"
    found: list[Parameter] = []
    for name in names[:2] if gated else names[1:2]:
        fused: Fused = "" if not gated else "first" if name == names[0] else "next"
        found += linear(f"{stem}.{name}", inner, hidden, "expert_column", bias=bias, count=count, fused=fused)
    found += linear(f"{stem}.{names[2]}", hidden, inner, "expert_row", count=count)
    if bias:
        found.append(vector(f"{stem}.{names[2]}.bias", hidden, "expert", count=count))
    return found


def router(
    name: str, experts_count: int, hidden: int, *, bias: bool = False, itemsize: int = 0, linear: bool = False
) -> list[Parameter]:
    """The gate: whole on each rank, and a scheme applies to it only where vLLM passes it on (``linear``)."""
    found = [Parameter(f"{name}.weight", (experts_count, hidden), "replicated", itemsize=itemsize, linear=linear)]
    return [*found, Parameter(f"{name}.bias", (experts_count,), "replicated")] if bias else found
