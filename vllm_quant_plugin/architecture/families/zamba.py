"""Zamba2: Mamba-2 layers, some of which also run a transformer block that they share. No torch.

Source: vllm/model_executor/models/zamba2.py of 0.32 and 0.33.
"""

from __future__ import annotations

from vllm_quant_plugin.architecture.arch import Layer, ModelArch, Parameter, TpRule
from vllm_quant_plugin.architecture.families import parts
from vllm_quant_plugin.architecture.families.decoder import rotary_elements
from vllm_quant_plugin.architecture.families.mamba import Mamba2
from vllm_quant_plugin.architecture.families.mixed import Config, assemble, full_cache
from vllm_quant_plugin.architecture.reader import Reader
from vllm_quant_plugin.errors import CheckpointError

# transformers' default of layers_block_type
_TYPES = ["mamba"] + (["mamba"] * 5 + ["hybrid"]) * 7 + ["mamba"] * 4 + ["hybrid"] + ["mamba"] * 3 + ["hybrid"] + [
    "mamba"] * 2  # fmt: skip


def _adapter(prefix: str, width: int, rank: int, outputs: int) -> list[Parameter]:
    return [*parts.linear(f"{prefix}.A", rank, width, "column"), *parts.linear(f"{prefix}.B", outputs, rank, "column")]


def build(reader: Reader, config: Config) -> ModelArch:
    """``num_mem_blocks`` shared blocks take turns in the layers of type ``hybrid``; each use has its own adapters.

    The parameters of a shared block are counted in the layer that uses it first.
    """
    hidden, inner = reader.integer("hidden_size"), reader.integer("intermediate_size")
    types = reader.strings("layers_block_type") or _TYPES
    heads = reader.integer("num_attention_heads")
    wide = 2 * hidden
    dim = reader.integer("attention_head_dim", default=max(wide // heads, 1))
    if dim * heads != wide:
        raise CheckpointError(
            f"config.json: {heads} heads of {dim} are not twice hidden_size {hidden}", "fix config.json"
        )
    attention = parts.Attention(wide, heads, heads, dim, dim)
    width = reader.integer("mamba_expand", default=2, limit="layers") * hidden
    mixers = reader.integer("n_mamba_heads", default=8)
    bias = reader.flag("add_bias_linear")
    mixer = Mamba2(
        hidden, width, mixers, max(width // mixers, 1), reader.integer("mamba_ngroups", default=1),
        reader.integer("mamba_d_state", default=64), reader.integer("mamba_d_conv", default=4, limit="layers"), bias,
        reader.flag("use_conv_bias", default=True),
    )  # fmt: skip
    blocks = reader.integer("num_mem_blocks", default=1, limit="layers")
    rank = reader.integer("adapter_rank", default=128)
    adapted = reader.flag("use_shared_attention_adapter")
    layers: list[Layer] = []
    seen = 0
    for i, kind in enumerate(types):
        prefix = f"model.layers.{i}"
        found = [*mixer.parameters(f"{prefix}.mamba"), *parts.norm(f"{prefix}.input_layernorm", hidden)]
        caches = [mixer.cache()]
        if kind == "hybrid":
            shared = f"{prefix}.shared_transformer"
            if seen < blocks:
                found += attention_block(shared, attention, hidden, inner, bias)
            if adapted:
                for name in "qkv":
                    found += _adapter(f"{shared}.self_attn.linear_{name}_adapter_list.{seen}", wide, rank, wide)
            found += _adapter(f"{shared}.feed_forward.gate_up_proj_adapter_list.{seen}", hidden, rank, 2 * inner)
            found += parts.linear(f"{prefix}.linear", hidden, hidden, "replicated")
            caches.append(full_cache(attention))
            seen += 1
        layers.append(Layer(tuple(found), tuple(caches)))
    rules = [*attention.rules(), *mixer.rules(), TpRule("MLP features", inner), TpRule("adapter ranks", rank)]
    max_position = reader.integer("max_position_embeddings", default=4096, limit="length")
    roped = rotary_elements(reader, dim, max_position) if reader.flag("use_mem_rope") else 0
    return assemble(
        reader, config, layers, rules if seen else mixer.rules(), norm="final_layernorm", tied=True, inner=inner,
        heads=(heads, dim), rotary=roped, pipeline=False,
    )  # fmt: skip


def attention_block(prefix: str, attention: parts.Attention, hidden: int, inner: int, bias: bool) -> list[Parameter]:
    """The shared transformer: attention over twice the width, then a gated feed-forward."""
    found = [p for p in attention.parameters(f"{prefix}.self_attn") if not p.name.endswith(".o_proj.weight")]
    found += parts.linear(f"{prefix}.self_attn.o_proj", hidden, attention.hidden, "row")
    found += parts.mlp(f"{prefix}.feed_forward", hidden, inner, bias=bias)
    found += parts.norm(f"{prefix}.input_layernorm", attention.hidden)
    return [*found, *parts.norm(f"{prefix}.pre_ff_layernorm", hidden)]
