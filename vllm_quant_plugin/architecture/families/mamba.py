"""State-space and linear-attention mixers: Mamba, Mamba-2, gated delta net, short convolution. No torch.

Sources: vllm/model_executor/layers/mamba (mamba_mixer.py, mamba_mixer2.py, mamba_utils.py,
gdn/qwen_gdn_linear_attn.py, short_conv.py) of 0.32 and 0.33.
"""

from __future__ import annotations

from dataclasses import dataclass

from vllm_quant_plugin.architecture.arch import Cache, Parameter, State, TpRule
from vllm_quant_plugin.architecture.families import parts


@dataclass(frozen=True)
class Mamba1:
    """A first-generation Mamba mixer; vLLM hands its projections no quantization method.

    Attributes:
        inner: features of the mixer, cut by tensor parallelism.
        rank: of the time-step projection.
        norms: whether dt, B and C are normed with weights (Jamba).
    """

    hidden: int
    inner: int
    state: int
    kernel: int
    rank: int
    bias: bool = False
    conv_bias: bool = True
    norms: bool = False

    def parameters(self, prefix: str) -> list[Parameter]:
        found = [
            Parameter(f"{prefix}.conv1d.weight", (self.inner, self.kernel), "column"),
            Parameter(f"{prefix}.in_proj.weight", (2 * self.inner, self.hidden), "column"),
            Parameter(f"{prefix}.x_proj.weight", (self.rank + 2 * self.state, self.inner), "row"),
            Parameter(f"{prefix}.dt_proj.weight", (self.inner, self.rank), "column"),
            parts.vector(f"{prefix}.dt_proj.bias", self.inner, "column"),
            Parameter(f"{prefix}.A_log", (self.inner, self.state), "column", itemsize=4),
            parts.vector(f"{prefix}.D", self.inner, "column"),
            Parameter(f"{prefix}.out_proj.weight", (self.hidden, self.inner), "row"),
        ]
        if self.conv_bias:
            found.append(parts.vector(f"{prefix}.conv1d.bias", self.inner, "column"))
        if self.bias:
            found.append(parts.vector(f"{prefix}.in_proj.bias", 2 * self.inner, "column"))
            found.append(parts.vector(f"{prefix}.out_proj.bias", self.hidden))
        if self.norms:
            for name, width in (("dt", self.rank), ("b", self.state), ("c", self.state)):
                found += parts.norm(f"{prefix}.{name}_layernorm", width)
        return found

    def cache(self) -> Cache:
        states = (State(self.inner * (self.kernel - 1)), State(self.inner * self.state, temporal=True))
        return Cache("mamba", states=states)

    def rules(self) -> list[TpRule]:
        return [TpRule("Mamba features", self.inner)]


@dataclass(frozen=True)
class Mamba2:
    """A Mamba-2 mixer: ``inner`` = heads x head_dim, B and C in ``groups`` groups of ``state``."""

    hidden: int
    inner: int
    heads: int
    head_dim: int
    groups: int
    state: int
    kernel: int
    bias: bool = False
    conv_bias: bool = True
    normed: bool = True

    def parameters(self, prefix: str) -> list[Parameter]:
        grouped = 2 * self.groups * self.state
        in_proj, conv = f"{prefix}.in_proj", f"{prefix}.conv1d"
        found = [
            *parts.linear(in_proj, 2 * self.inner + self.heads, self.hidden, "column", bias=self.bias),
            *parts.linear(in_proj, grouped, self.hidden, "kv", bias=self.bias, heads=self.groups),
            Parameter(f"{conv}.weight", (self.inner, self.kernel), "column"),
            Parameter(f"{conv}.weight", (grouped, self.kernel), "kv", self.groups),
            parts.vector(f"{prefix}.A_log", self.heads, "column", itemsize=4),
            parts.vector(f"{prefix}.D", self.heads, "column"),
            parts.vector(f"{prefix}.dt_bias", self.heads, "column"),
            *parts.linear(f"{prefix}.out_proj", self.hidden, self.inner, "row", bias=self.bias),
        ]
        if self.conv_bias:
            found.append(Parameter(f"{conv}.bias", (self.inner,), "column"))
            found.append(Parameter(f"{conv}.bias", (grouped,), "kv", self.groups))
        if self.normed:
            found.append(parts.vector(f"{prefix}.norm.weight", self.inner, "column"))
        return found

    def cache(self) -> Cache:
        steps = self.kernel - 1
        conv = State(self.inner * steps, 2 * self.groups * self.state * steps, self.groups)
        temporal = State(self.heads * self.head_dim * self.state, temporal=True)
        return Cache("mamba", states=(conv, temporal), checkpoints=3)  # Mamba-2 also checkpoints the prompt's end

    def rules(self) -> list[TpRule]:
        rules = [TpRule("Mamba heads", self.heads)]
        return rules if self.groups == 1 else [*rules, TpRule("Mamba groups", self.groups)]


@dataclass(frozen=True)
class GatedDeltaNet:
    """Qwen3-Next's linear attention: key heads, value heads, a short convolution over q, k and v."""

    hidden: int
    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int

    @property
    def conv_width(self) -> int:
        return 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim

    def parameters(self, prefix: str) -> list[Parameter]:
        keys, values = self.key_heads * self.key_dim, self.value_heads * self.value_dim
        return [
            *parts.linear(f"{prefix}.in_proj_qkvz", 2 * keys + 2 * values, self.hidden, "column"),
            *parts.linear(f"{prefix}.in_proj_ba", 2 * self.value_heads, self.hidden, "column"),
            Parameter(f"{prefix}.conv1d.weight", (self.conv_width, self.kernel), "column"),
            parts.vector(f"{prefix}.dt_bias", self.value_heads, "column"),
            parts.vector(f"{prefix}.A_log", self.value_heads, "column", itemsize=4),
            parts.vector(f"{prefix}.norm.weight", self.value_dim),
            *parts.linear(f"{prefix}.out_proj", self.hidden, values, "row"),
        ]

    def cache(self) -> Cache:
        recurrent = State(self.value_heads * self.value_dim * self.key_dim, temporal=True)
        return Cache("mamba", states=(State(self.conv_width * (self.kernel - 1)), recurrent))

    def rules(self) -> list[TpRule]:
        return [
            TpRule("linear-attention key heads", self.key_heads),
            TpRule("linear-attention heads", self.value_heads),
        ]


@dataclass(frozen=True)
class ShortConv:
    """LFM2's gated short convolution."""

    hidden: int
    width: int
    kernel: int
    bias: bool = False

    def parameters(self, prefix: str) -> list[Parameter]:
        found = [
            *parts.linear(f"{prefix}.in_proj", 3 * self.width, self.hidden, "column", bias=self.bias),
            Parameter(f"{prefix}.conv.weight", (self.width, self.kernel), "column"),
            *parts.linear(f"{prefix}.out_proj", self.hidden, self.width, "row", bias=self.bias),
        ]
        return [*found, Parameter(f"{prefix}.conv.bias", (self.width,), "column")] if self.bias else found

    def cache(self) -> Cache:
        return Cache("mamba", states=(State(self.width * (self.kernel - 1)),))

    def rules(self) -> list[TpRule]:
        return [TpRule("convolution features", self.width)]
