"""Mixture-of-experts feed-forwards by family: which layers are sparse, and what they hold. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from vllm_quant_plugin.architecture.arch import Parameter, TpRule
from vllm_quant_plugin.architecture.families import parts
from vllm_quant_plugin.architecture.reader import Reader


@dataclass(frozen=True)
class Moe:
    """The sparse feed-forward of a model.

    Attributes:
        sparse: per layer, whether it is one.
        block: parameters of one sparse block under a prefix such as ``model.layers.3``.
        count: routed experts; ``active`` of them per token.
        inner: intermediate size of one expert.
        limited: whether vLLM refuses more ranks than experts.
        rules: sizes that tensor parallelism must divide, besides those of dense layers.
    """

    sparse: tuple[bool, ...]
    block: Callable[[str], list[Parameter]]
    count: int
    active: int
    inner: int
    limited: bool = False
    rules: tuple[TpRule, ...] = field(default=())


def mixtral(reader: Reader, layers: int, hidden: int) -> Moe:
    count = reader.integer("num_local_experts", "num_experts", limit="experts")
    inner = reader.integer("intermediate_size")

    def block(prefix: str) -> list[Parameter]:
        stem = f"{prefix}.block_sparse_moe"
        return [
            *parts.router(f"{stem}.gate", count, hidden),
            *parts.experts(stem, count, hidden, inner, names=("w1", "w3", "w2")),
        ]

    active = reader.integer("num_experts_per_tok", default=2, limit="experts")
    return Moe((True,) * layers, block, count, active, inner)


def granite(reader: Reader, layers: int, hidden: int) -> Moe:
    """As Mixtral, with the shared expert of GraniteMoeShared where its size is set."""
    count = reader.integer("num_local_experts", limit="experts")
    inner = reader.integer("intermediate_size")
    shared = reader.integer("shared_intermediate_size", default=0, least=0)

    def block(prefix: str) -> list[Parameter]:
        stem = f"{prefix}.block_sparse_moe"
        found = [
            *parts.router(f"{stem}.router.layer", count, hidden),
            *parts.experts(stem, count, hidden, inner, names=("w1", "w3", "w2")),
        ]
        if shared:
            found += parts.mlp(f"{prefix}.shared_mlp", hidden, shared)
        return found

    active = reader.integer("num_experts_per_tok", default=2, limit="experts")
    rules = (TpRule("shared expert features", shared),) if shared else ()
    return Moe((True,) * layers, block, count, active, inner, rules=rules)


def qwen(reader: Reader, layers: int, hidden: int) -> Moe:
    """Qwen2-MoE and Qwen3-MoE: ``decoder_sparse_step`` and ``mlp_only_layers`` choose the sparse layers."""
    count = reader.integer("num_experts", limit="experts", least=0, default=0)
    inner = reader.integer("moe_intermediate_size", default=768)
    shared = reader.integer("shared_expert_intermediate_size", default=0, least=0)
    step = reader.integer("decoder_sparse_step", default=1, limit="layers")
    dense = set(reader.items("mlp_only_layers") or ())
    sparse = tuple(count > 0 and i not in dense and (i + 1) % step == 0 for i in range(layers))
    two_step = reader.text("model_type") == "qwen2_moe"

    def block(prefix: str) -> list[Parameter]:
        found = [*parts.router(f"{prefix}.mlp.gate", count, hidden, linear=not two_step)]
        if shared or two_step:
            found.append(Parameter(f"{prefix}.mlp.shared_expert_gate.weight", (1, hidden), "replicated"))
        if shared:
            found += parts.mlp(f"{prefix}.mlp.shared_expert", hidden, shared)
        return [*found, *parts.experts(f"{prefix}.mlp", count, hidden, inner)]

    active = reader.integer("num_experts_per_tok", default=4, limit="experts")
    rules = (TpRule("shared expert features", shared),) if shared else ()
    return Moe(sparse, block, count, active, inner, True, rules)


def olmoe(reader: Reader, layers: int, hidden: int) -> Moe:
    count = reader.integer("num_experts", limit="experts", default=64)
    inner = reader.integer("intermediate_size")

    def block(prefix: str) -> list[Parameter]:
        return [
            *parts.router(f"{prefix}.mlp.gate", count, hidden),
            *parts.experts(f"{prefix}.mlp", count, hidden, inner),
        ]

    active = reader.integer("num_experts_per_tok", default=8, limit="experts")
    return Moe((True,) * layers, block, count, active, inner)


def gpt_oss(reader: Reader, layers: int, hidden: int) -> Moe:
    """GPT-OSS: experts and router with biases."""
    count = reader.integer("num_local_experts", limit="experts")
    inner = reader.integer("intermediate_size")

    def block(prefix: str) -> list[Parameter]:
        return [
            *parts.router(f"{prefix}.mlp.router", count, hidden, bias=True),
            *parts.experts(f"{prefix}.mlp", count, hidden, inner, bias=True),
        ]

    active = reader.integer("num_experts_per_tok", "experts_per_token", default=4, limit="experts")
    return Moe((True,) * layers, block, count, active, inner)


def deepseek(reader: Reader, layers: int, hidden: int) -> Moe:
    """DeepSeek-MoE, V2, V3 and GLM-4-MoE: dense layers first, shared experts as one wide MLP."""
    count = reader.integer("n_routed_experts", "num_experts", default=0, limit="experts", least=0)
    inner = reader.integer("moe_intermediate_size", default=1408)
    shared = reader.integer("n_shared_experts", "num_shared_experts", default=0, limit="experts", least=0)
    first = reader.integer("first_k_dense_replace", default=0, limit="layers", least=0)
    step = reader.integer("moe_layer_freq", default=1, limit="layers")
    sparse = tuple(count > 0 and i >= first and i % step == 0 for i in range(layers))
    glm = reader.text("model_type") in ("glm4_moe", "glm4_moe_lite")  # its router is in float32
    correction = reader.text("topk_method") == "noaux_tc" or glm

    def block(prefix: str) -> list[Parameter]:
        found = parts.router(f"{prefix}.mlp.gate", count, hidden, itemsize=4 if glm else 0)
        if correction:
            found.append(parts.vector(f"{prefix}.mlp.gate.e_score_correction_bias", count, itemsize=4))
        if shared:
            found += parts.mlp(f"{prefix}.mlp.shared_experts", hidden, shared * inner)
        return [*found, *parts.experts(f"{prefix}.mlp", count, hidden, inner)]

    active = reader.integer("num_experts_per_tok", default=6, limit="experts")
    return Moe(sparse, block, count, active, inner)


def ernie(reader: Reader, layers: int, hidden: int) -> Moe:
    """ERNIE 4.5: sparse from ``moe_layer_start_index`` to ``moe_layer_end_index``, shared experts as one wide MLP."""
    count = reader.integer("moe_num_experts", limit="experts")
    inner = reader.integer("moe_intermediate_size")
    shared = reader.integer("moe_num_shared_experts", default=0, limit="experts", least=0)
    first = reader.integer("moe_layer_start_index", default=0, limit="layers", least=0)
    final = reader.integer("moe_layer_end_index", default=layers - 1, limit="layers", least=-1)
    final = layers - 1 if final == -1 else final
    step = reader.integer("moe_layer_interval", default=1, limit="layers")
    sparse = tuple(first <= i <= final and (i + 1) % step == 0 for i in range(layers))

    def block(prefix: str) -> list[Parameter]:
        found = parts.router(f"{prefix}.mlp.gate", count, hidden, itemsize=4)
        found.append(parts.vector(f"{prefix}.mlp.moe_statics.e_score_correction_bias", count, itemsize=4))
        if shared:
            found += parts.mlp(f"{prefix}.mlp.shared_experts", hidden, shared * inner)
        return [*found, *parts.experts(f"{prefix}.mlp", count, hidden, inner)]

    active = reader.integer("moe_k", default=6, limit="experts")
    return Moe(sparse, block, count, active, inner, True)


def minimax(reader: Reader, layers: int, hidden: int) -> Moe:
    """MiniMax M2: a router in float32 with a bias that corrects the scores."""
    count, inner = reader.integer("num_local_experts", limit="experts"), reader.integer("intermediate_size")

    def block(prefix: str) -> list[Parameter]:
        stem = f"{prefix}.block_sparse_moe"
        found = parts.router(f"{stem}.gate", count, hidden, itemsize=4)
        if reader.flag("use_routing_bias", default=True):
            found.append(parts.vector(f"{stem}.e_score_correction_bias", count, itemsize=4))
        return [*found, *parts.experts(stem, count, hidden, inner, names=("w1", "w3", "w2"))]

    active = reader.integer("num_experts_per_tok", default=8, limit="experts")
    return Moe((True,) * layers, block, count, active, inner, True)


def lfm2(reader: Reader, layers: int, hidden: int) -> Moe:
    """LFM2-MoE: ``num_dense_layers`` dense layers first."""
    count, inner = reader.integer("num_experts", limit="experts"), reader.integer("moe_intermediate_size")
    dense = reader.integer("num_dense_layers", default=0, limit="layers", least=0)

    def block(prefix: str) -> list[Parameter]:
        stem = f"{prefix}.feed_forward"
        found = parts.router(f"{stem}.gate", count, hidden, linear=True)
        if reader.flag("use_expert_bias", default=True):
            found.append(parts.vector(f"{stem}.expert_bias", count, itemsize=4))
        return [*found, *parts.experts(stem, count, hidden, inner, names=("w1", "w3", "w2"))]

    active = reader.integer("num_experts_per_tok", default=4, limit="experts")
    return Moe(tuple(i >= dense for i in range(layers)), block, count, active, inner, True)


def llama4(reader: Reader, layers: int, hidden: int) -> Moe:
    """Llama 4: every ``interleave_moe_layer_step``-th layer, with one shared expert."""
    count = reader.integer("num_local_experts", limit="experts", default=16)
    inner = reader.integer("intermediate_size")
    step = reader.integer("interleave_moe_layer_step", default=1, limit="layers", least=0)
    sparse = tuple(step > 0 and (i + 1) % step == 0 for i in range(layers))

    def block(prefix: str) -> list[Parameter]:
        stem = f"{prefix}.feed_forward"
        return [
            *parts.router(f"{stem}.router", count, hidden),
            *parts.mlp(f"{stem}.shared_expert", hidden, inner),
            *parts.experts(stem, count, hidden, inner),
        ]

    return Moe(sparse, block, count, reader.integer("num_experts_per_tok", default=1, limit="experts"), inner)


RULES: dict[str, Callable[[Reader, int, int], Moe]] = {
    "llama4": llama4,
    "mixtral": mixtral,
    "granite": granite,
    "qwen": qwen,
    "olmoe": olmoe,
    "gpt_oss": gpt_oss,
    "deepseek": deepseek,
    "ernie": ernie,
    "minimax": minimax,
}
