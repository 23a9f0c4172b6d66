"""Models that mix attention with state-space or linear-attention layers. No torch.

Sources: vllm/model_executor/models (falcon_h1, granitemoehybrid, qwen3_next, nemotron_h, mamba2, lfm2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm_quant_plugin.architecture.arch import Cache, Layer, ModelArch, Parameter, TpRule
from vllm_quant_plugin.architecture.families import mamba_one, parts, zamba
from vllm_quant_plugin.architecture.families.decoder import rotary_elements
from vllm_quant_plugin.architecture.families.mamba import GatedDeltaNet, Mamba2, ShortConv
from vllm_quant_plugin.architecture.families.mixed import Config, assemble, attention_of, full_cache, layer_types
from vllm_quant_plugin.architecture.families.moe import granite, qwen
from vllm_quant_plugin.architecture.families.moe import lfm2 as lfm2_moe
from vllm_quant_plugin.architecture.reader import Reader
from vllm_quant_plugin.errors import CheckpointError


def _mamba2(reader: Reader, hidden: int, inner: int, **fields: Any) -> Mamba2:
    return Mamba2(
        hidden, inner, reader.integer("mamba_n_heads"), reader.integer("mamba_d_head", default=64),
        reader.integer("mamba_n_groups", default=1), reader.integer("mamba_d_state", default=128),
        reader.integer("mamba_d_conv", default=4, limit="layers"), reader.flag("mamba_proj_bias"),
        reader.flag("mamba_conv_bias", default=True), **fields,
    )  # fmt: skip


def falcon_h1(reader: Reader, config: Config) -> ModelArch:
    """Attention and Mamba-2 side by side in every layer."""
    hidden, inner = reader.integer("hidden_size"), reader.integer("intermediate_size")
    expand = reader.number("mamba_expand", 2.0)
    width = reader.integer("mamba_d_ssm", default=max(int(expand * hidden), 1))
    attention = attention_of(reader, hidden)
    mixer = _mamba2(reader, hidden, width, normed=reader.flag("mamba_rms_norm"))
    layers = []
    for i in range(reader.integer("num_hidden_layers", limit="layers")):
        prefix = f"model.layers.{i}"
        found = [
            *attention.parameters(f"{prefix}.self_attn"),
            *mixer.parameters(f"{prefix}.mamba"),
            *parts.norm(f"{prefix}.input_layernorm", hidden),
            *parts.norm(f"{prefix}.pre_ff_layernorm", hidden),
            *parts.mlp(f"{prefix}.feed_forward", hidden, inner, bias=reader.flag("mlp_bias")),
        ]
        layers.append(Layer(tuple(found), (full_cache(attention), mixer.cache())))
    rules = [*attention.rules(), *mixer.rules(), TpRule("MLP features", inner)]
    max_position = reader.integer("max_position_embeddings", default=8192, limit="length")
    return assemble(
        reader, config, layers, rules, norm="final_layernorm", tied=reader.flag("tie_word_embeddings"), inner=inner,
        heads=(attention.heads, attention.head_dim), rotary=rotary_elements(reader, attention.head_dim, max_position),
    )  # fmt: skip


def granite_hybrid(reader: Reader, config: Config) -> ModelArch:
    """Granite 4: Mamba-2 layers with some attention, experts and a shared MLP in each."""
    hidden = reader.integer("hidden_size")
    count = reader.integer("num_hidden_layers", limit="layers")
    bias = reader.flag("attention_bias")
    attention = attention_of(reader, hidden, qkv_bias=bias, o_bias=bias)
    mixer = _mamba2(reader, hidden, reader.integer("mamba_expand", default=2, limit="layers") * hidden)
    types = layer_types(reader, count, ["mamba"] * count, "layer_types", "layers_block_type")
    experts = reader.integer("num_local_experts", default=0, limit="experts", least=0)
    moe = granite(reader, count, hidden) if experts else None
    shared = reader.integer("shared_intermediate_size", default=0, least=0)
    rules: list[TpRule] = []
    layers = []
    for i in range(count):
        prefix = f"model.layers.{i}"
        found: list[Parameter] = []
        if types[i] == "attention":
            found += attention.parameters(f"{prefix}.self_attn")
            rules += attention.rules()
        else:
            found += mixer.parameters(f"{prefix}.mamba")
            rules += mixer.rules()
        found += parts.norm(f"{prefix}.input_layernorm", hidden)
        found += parts.norm(f"{prefix}.post_attention_layernorm", hidden)
        if moe is not None:
            found += moe.block(prefix)
        elif shared:
            found += parts.mlp(f"{prefix}.shared_mlp", hidden, shared)
        layers.append(Layer(tuple(found), (full_cache(attention) if types[i] == "attention" else mixer.cache(),)))
    if moe is not None:
        rules += [TpRule("expert features", moe.inner), *moe.rules]
    elif shared:
        rules.append(TpRule("MLP features", shared))
    roped = reader.text("position_embedding_type") == "rope"
    max_position = reader.integer("max_position_embeddings", default=8192, limit="length")
    return assemble(
        reader, config, layers, rules, tied=reader.flag("tie_word_embeddings"), inner=moe.inner if moe else shared,
        heads=(attention.heads, attention.head_dim), experts=(moe.count, moe.active) if moe else (0, 0),
        rotary=rotary_elements(reader, attention.head_dim, max_position) if roped else 0, ends="everywhere",
    )  # fmt: skip


def qwen3_next(reader: Reader, config: Config) -> ModelArch:
    """Qwen3-Next and Qwen3.5: gated delta net in three of four layers, gated attention in the fourth, maybe experts."""
    hidden = reader.integer("hidden_size")
    count = reader.integer("num_hidden_layers", limit="layers")
    bias = reader.flag("attention_bias")
    attention = attention_of(reader, hidden, qkv_bias=bias, qk_norm="head", gated=True)
    mixer = GatedDeltaNet(
        hidden, reader.integer("linear_num_key_heads", default=16),
        reader.integer("linear_num_value_heads", default=32),
        reader.integer("linear_key_head_dim", default=128), reader.integer("linear_value_head_dim", default=128),
        reader.integer("linear_conv_kernel_dim", default=4, limit="layers"),
    )  # fmt: skip
    step = reader.integer("full_attention_interval", default=4, limit="layers")
    every = ["full_attention" if (i + 1) % step == 0 else "linear_attention" for i in range(count)]
    types = layer_types(reader, count, every)
    moe, inner = qwen(reader, count, hidden), reader.integer("intermediate_size", default=5632)
    layers = []
    for i in range(count):
        prefix, full = f"model.layers.{i}", types[i] == "full_attention"
        found = attention.parameters(f"{prefix}.self_attn") if full else mixer.parameters(f"{prefix}.linear_attn")
        found += parts.norm(f"{prefix}.input_layernorm", hidden)
        found += parts.norm(f"{prefix}.post_attention_layernorm", hidden)
        found += moe.block(prefix) if moe.sparse[i] else parts.mlp(f"{prefix}.mlp", hidden, inner)
        layers.append(Layer(tuple(found), (full_cache(attention) if full else mixer.cache(),)))
    rules = [*attention.rules(), *mixer.rules()]
    if any(moe.sparse):
        rules += [TpRule("expert features", moe.inner), *moe.rules]
    if not all(moe.sparse):
        rules.append(TpRule("MLP features", inner))
    max_position = reader.integer("max_position_embeddings", default=32_768, limit="length")
    partial = Reader({"partial_rotary_factor": 0.25, **reader.config}, reader.where)
    return assemble(
        reader, config, layers, rules, tied=reader.flag("tie_word_embeddings"),
        inner=moe.inner if any(moe.sparse) else inner,
        heads=(attention.heads, attention.head_dim), experts=(moe.count, moe.active) if any(moe.sparse) else (0, 0),
        rotary=rotary_elements(partial, attention.head_dim, max_position), state_dtype=reader.text("mamba_ssm_dtype"),
        ends="norm_last" if reader.text("model_type") == "qwen3_next" else "embedding_everywhere",
    )  # fmt: skip


def nemotron_h(reader: Reader, config: Config) -> ModelArch:
    """One mixer per layer, by the letters of ``hybrid_override_pattern``: M Mamba-2, * attention, - MLP."""
    hidden, inner = reader.integer("hidden_size"), reader.integer("intermediate_size")
    bias = reader.flag("attention_bias")
    attention = attention_of(reader, hidden, qkv_bias=bias, o_bias=bias)
    heads, dim = reader.integer("mamba_num_heads"), reader.integer("mamba_head_dim", default=64)
    mixer = Mamba2(
        hidden, heads * dim, heads, dim, reader.integer("n_groups", default=8),
        reader.integer("ssm_state_size", default=128), reader.integer("conv_kernel", default=4, limit="layers"),
        reader.flag("use_bias"), reader.flag("use_conv_bias", default=True),
    )  # fmt: skip
    letters = reader.text("hybrid_override_pattern")
    count = reader.integer("num_hidden_layers", default=len(letters) or None, limit="layers")
    if len(letters) != count or set(letters) - set("M*-"):
        raise CheckpointError(
            "config.json: hybrid_override_pattern is not one of M, * and - per layer", "fix config.json"
        )
    rules: list[TpRule] = []
    layers = []
    for i, letter in enumerate(letters):
        prefix = f"backbone.layers.{i}"
        found = parts.norm(f"{prefix}.norm", hidden)
        if letter == "M":
            found, rules = found + mixer.parameters(f"{prefix}.mixer"), rules + mixer.rules()
        elif letter == "*":
            found, rules = found + attention.parameters(f"{prefix}.mixer"), rules + attention.rules()
        else:
            found += parts.mlp(f"{prefix}.mixer", hidden, inner, gated=False, bias=reader.flag("mlp_bias"))
            rules.append(TpRule("MLP features", inner))
        caches: dict[str, tuple[Cache, ...]] = {"M": (mixer.cache(),), "*": (full_cache(attention),), "-": ()}
        layers.append(Layer(tuple(found), caches[letter]))
    return assemble(
        reader, config, layers, rules, root="backbone", embed="embeddings", norm="norm_f", inner=inner,
        tied=reader.flag("tie_word_embeddings"), heads=(attention.heads, attention.head_dim),
        state_dtype=reader.text("mamba_ssm_cache_dtype", "float32"), ends="everywhere",
    )  # fmt: skip


def lfm2(reader: Reader, config: Config) -> ModelArch:
    """LFM2: short convolutions with some attention layers; LFM2-MoE has experts behind its first layers."""
    hidden = reader.integer("hidden_size")
    count = reader.integer("num_hidden_layers", limit="layers")
    attention = attention_of(reader, hidden, qk_norm="head", names=("q_proj", "k_proj", "v_proj", "out_proj"),
                           norm_names=("q_layernorm", "k_layernorm"))  # fmt: skip
    mixer = ShortConv(
        hidden, reader.integer("conv_dim", default=hidden), reader.integer("conv_L_cache", default=3, limit="layers"),
        reader.flag("conv_bias"),
    )  # fmt: skip
    full = reader.items("full_attn_idxs") or list(range(count))
    types = layer_types(reader, count, ["full_attention" if i in full else "conv" for i in range(count)])
    inner = reader.integer("block_ff_dim", "intermediate_size")
    moe = lfm2_moe(reader, count, hidden) if reader.text("model_type") == "lfm2_moe" else None
    if reader.flag("block_auto_adjust_ff_dim"):
        step = reader.integer("block_multiple_of", default=256)
        inner = int(2 * inner / 3 * (reader.number("block_ffn_dim_multiplier", 1.0) or 1.0))
        inner = step * -(-inner // step)
    layers = []
    for i in range(count):
        prefix, is_full = f"model.layers.{i}", types[i] == "full_attention"
        found = attention.parameters(f"{prefix}.self_attn") if is_full else mixer.parameters(f"{prefix}.conv")
        found += parts.norm(f"{prefix}.operator_norm", hidden)
        found += parts.norm(f"{prefix}.ffn_norm", hidden)
        if moe is not None and moe.sparse[i]:
            found += moe.block(prefix)
        else:
            found += parts.mlp(f"{prefix}.feed_forward", hidden, inner, names=("w1", "w3", "w2"))
        layers.append(Layer(tuple(found), (full_cache(attention) if is_full else mixer.cache(),)))
    max_position = reader.integer("max_position_embeddings", default=8192, limit="length")
    rules = [*attention.rules(), *mixer.rules(), TpRule("MLP features", inner)]
    if moe is not None:
        rules.append(TpRule("expert features", moe.inner))
    return assemble(
        reader, config, layers, rules, norm="embedding_norm", inner=inner, heads=(attention.heads, attention.head_dim),
        experts=(moe.count, moe.active) if moe is not None else (0, 0),
        tied=reader.flag("tie_embedding", "tie_word_embeddings", default=True),
        rotary=rotary_elements(reader, attention.head_dim, max_position), ends="norm_last",
    )  # fmt: skip


def mamba2(reader: Reader, config: Config) -> ModelArch:
    """Mamba-2 without attention."""
    hidden = reader.integer("hidden_size")
    heads, dim = reader.integer("num_heads", default=128), reader.integer("head_dim", default=64)
    expanded = reader.integer("expand", default=2, limit="layers") * hidden
    inner = reader.integer("intermediate_size", default=expanded)
    mixer = Mamba2(
        hidden, inner, heads, dim, reader.integer("n_groups", default=8),
        reader.integer("state_size", default=128),
        reader.integer("conv_kernel", default=4, limit="layers"), reader.flag("use_bias"),
        reader.flag("use_conv_bias", default=True),
    )  # fmt: skip
    layers = [
        Layer((*parts.norm(f"backbone.layers.{i}.norm", hidden), *mixer.parameters(f"backbone.layers.{i}.mixer")),
              (mixer.cache(),))
        for i in range(reader.integer("num_hidden_layers", limit="layers"))
    ]  # fmt: skip
    return assemble(
        reader, config, layers, mixer.rules(), root="backbone", embed="embeddings", norm="norm_f",
        tied=reader.flag("tie_word_embeddings"), inner=inner, pipeline=False,
    )  # fmt: skip


BUILDERS: dict[str, Callable[[Reader, Config], ModelArch]] = {
    "falcon_h1": falcon_h1,
    "granitemoehybrid": granite_hybrid,
    **dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"), qwen3_next),
    "nemotron_h": nemotron_h,
    "lfm2": lfm2,
    "lfm2_moe": lfm2,
    "mamba2": mamba2,
    "mamba": mamba_one.mamba,
    "falcon_mamba": mamba_one.mamba,
    "jamba": mamba_one.jamba,
    "zamba2": zamba.build,
}
