"""Gemma 3n and Gemma 4: layers that share an earlier layer's cache, embeddings per layer, experts. No torch.

Sources: vllm/model_executor/models (gemma3n.py, gemma4.py) of 0.32 and 0.33, transformers' configuration classes.
"""

from __future__ import annotations

from dataclasses import replace

from vllm_quant_plugin.architecture.arch import Cache, Layer, ModelArch, Parameter, TpRule
from vllm_quant_plugin.architecture.families import parts
from vllm_quant_plugin.architecture.families.decoder import architecture, model_dtype
from vllm_quant_plugin.architecture.families.mixed import Config, layer_types
from vllm_quant_plugin.architecture.reader import Reader
from vllm_quant_plugin.errors import CheckpointError

_NORMS = (
    "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm",
)  # fmt: skip


def _attention(reader: Reader, prefix: str, attention: parts.Attention, shared: bool) -> list[Parameter]:
    """Projections and norms; a layer that reads another's cache has no keys and values of its own."""
    found = attention.parameters(prefix)
    if not shared:
        return found
    return [p for p in found if p.module.rpartition(".")[2] not in ("k_proj", "v_proj", "k_norm")]


def _per_layer(reader: Reader, prefix: str, hidden: int, width: int, name: str) -> list[Parameter]:
    return [
        *parts.linear(f"{prefix}.per_layer_input_gate", width, hidden, "replicated"),
        *parts.linear(f"{prefix}.per_layer_projection", hidden, width, "replicated"),
        *parts.norm(f"{prefix}.{name}", hidden),
    ]


def _tables(reader: Reader, root: str, hidden: int, width: int, count: int) -> list[Parameter]:
    """What turns a token into one small embedding per layer."""
    vocab = reader.integer("vocab_size_per_layer_input", default=262_144, limit="vocab")
    return [
        parts.embedding(f"{root}.embed_tokens_per_layer", vocab, count * width),
        *parts.linear(f"{root}.per_layer_model_projection", count * width, hidden, "column"),
        *parts.norm(f"{root}.per_layer_projection_norm", width),
    ]


def _types(reader: Reader, count: int, pattern: int) -> list[str]:
    every = ["full_attention" if (i + 1) % pattern == 0 else "sliding_attention" for i in range(count)]
    return layer_types(reader, count, every)


def gemma3n(reader: Reader, config: Config) -> ModelArch:
    """Gemma 3n: the last ``num_kv_shared_layers`` layers read an earlier cache; AltUp and LAuReL in each layer."""
    count = reader.integer("num_hidden_layers", default=35, limit="layers")
    hidden, vocab = (
        reader.integer("hidden_size", default=2048),
        reader.integer("vocab_size", limit="vocab", default=262_400),
    )
    heads, kv_heads = reader.integer("num_attention_heads", default=8), reader.integer("num_key_value_heads", default=2)
    dim, bias = reader.integer("head_dim", default=256), reader.flag("attention_bias")
    window = reader.integer("sliding_window", default=512, limit="length")
    attention = parts.Attention(hidden, heads, kv_heads, dim, dim, qkv_bias=bias, o_bias=bias, qk_norm="head")
    types = _types(reader, count, 5)
    shared = reader.integer("num_kv_shared_layers", default=15, limit="layers", least=0)
    width = reader.integer("hidden_size_per_layer_input", default=256)
    inputs, rank = (
        reader.integer("altup_num_inputs", default=4, limit="layers"),
        reader.integer("laurel_rank", default=64),
    )
    inners = _widths(reader, count)
    layers = []
    for i in range(count):
        prefix, reads = f"model.layers.{i}", i >= count - shared
        found = _attention(reader, f"{prefix}.self_attn", attention, reads)
        found += parts.mlp(f"{prefix}.mlp", hidden, inners[i])
        for name in _NORMS:
            found += parts.norm(f"{prefix}.{name}", hidden)
        found += _per_layer(reader, prefix, hidden, width, "post_per_layer_input_norm")
        found += [
            *parts.linear(f"{prefix}.altup.correction_coefs", inputs, inputs, "replicated"),
            *parts.linear(f"{prefix}.altup.prediction_coefs", inputs**2, inputs, "replicated"),
            *parts.linear(f"{prefix}.altup.modality_router", inputs, hidden, "replicated"),
            *parts.norm(f"{prefix}.altup.router_norm", hidden),
            parts.vector(f"{prefix}.altup.correct_output_scale", hidden, itemsize=4),
            *parts.linear(f"{prefix}.laurel.linear_left", rank, hidden, "column"),
            *parts.linear(f"{prefix}.laurel.linear_right", hidden, rank, "row"),
            *parts.norm(f"{prefix}.laurel.post_laurel_norm", hidden),
        ]
        sliding = types[i] == "sliding_attention"
        cache = Cache("sliding" if sliding else "full", kv_heads, dim, dim, window if sliding else 0)
        layers.append(Layer(tuple(found), () if reads else (cache,)))
    embed = parts.embedding("model.embed_tokens", vocab, hidden)
    first = [embed, *_tables(reader, "model", hidden, width, count)]
    for i in range(inputs - 1):
        for name in ("altup_projections", "altup_unembed_projections"):
            first += parts.linear(f"model.{name}.{i}", hidden, hidden, "column")
    rules = [*attention.rules(), *(TpRule("MLP features", n) for n in dict.fromkeys(inners))]
    rules += [
        TpRule("LAuReL ranks", rank),
        TpRule("AltUp features", hidden),
        TpRule("per-layer features", count * width),
    ]
    max_position = reader.integer("max_position_embeddings", default=32_768, limit="length")
    return ModelArch(
        model_type=reader.text("model_type"), architecture=architecture(config), hidden=hidden, vocab=vocab,
        max_position=max_position, dtype=model_dtype(reader, config), layers=tuple(layers), first=tuple(first),
        last=tuple(parts.norm("model.norm", hidden)), shared=(embed,), rules=tuple(dict.fromkeys(rules)),
        intermediate=max(inners), heads=heads, head_dim=dim, rotary_elements=2 * max_position * dim, pipeline=False,
    )  # fmt: skip


def _widths(reader: Reader, count: int) -> list[int]:
    """Intermediate size of each layer: a list, or one number for all."""
    listed = reader.config.get("intermediate_size")
    if not isinstance(listed, list):
        return [reader.integer("intermediate_size", default=16_384)] * count
    if len(listed) < count:
        raise CheckpointError(
            f"config.json: intermediate_size names {len(listed)} of {count} layers", "fix config.json"
        )
    return [Reader({"intermediate_size": one}, reader.where).integer("intermediate_size") for one in listed[:count]]


def gemma4(reader: Reader, config: Config) -> ModelArch:
    """Gemma 4: full layers have wider heads and may share keys and values; experts beside the dense feed-forward."""
    count = reader.integer("num_hidden_layers", default=30, limit="layers")
    hidden, vocab = (
        reader.integer("hidden_size", default=2304),
        reader.integer("vocab_size", limit="vocab", default=262_144),
    )
    heads, kv_heads = reader.integer("num_attention_heads", default=8), reader.integer("num_key_value_heads", default=4)
    dim, inner = reader.integer("head_dim", default=256), reader.integer("intermediate_size", default=9216)
    wide = reader.integer("global_head_dim", default=512)
    window = reader.integer("sliding_window", default=512, limit="length")
    wide_kv = kv_heads
    if reader.flag("attention_k_eq_v"):
        wide_kv = reader.integer("num_global_key_value_heads", default=kv_heads)
    bias = reader.flag("attention_bias")
    near = parts.Attention(hidden, heads, kv_heads, dim, dim, qkv_bias=bias, o_bias=bias, qk_norm="head")
    far = replace(near, kv_heads=wide_kv, head_dim=wide, head_dim_v=wide)
    types = _types(reader, count, 6)
    types = [*types[: count - 1], "full_attention"]
    shared = reader.integer("num_kv_shared_layers", default=0, limit="layers", least=0)
    double = reader.flag("use_double_wide_mlp")
    width = reader.integer("hidden_size_per_layer_input", default=256, least=0)
    experts = reader.integer("num_experts", default=0, limit="experts", least=0)
    narrow = reader.integer("moe_intermediate_size", "expert_intermediate_size") if experts else 0
    layers = []
    for i in range(count):
        prefix, reads, sliding = f"model.layers.{i}", i >= count - shared, types[i] == "sliding_attention"
        attention = near if sliding else far
        found = _attention(reader, f"{prefix}.self_attn", attention, reads)
        found += parts.mlp(f"{prefix}.mlp", hidden, inner * (2 if double and count > shared and reads else 1))
        for name in _NORMS:
            found += parts.norm(f"{prefix}.{name}", hidden)
        if experts:
            found += _experts(prefix, hidden, experts, narrow)
        if width:
            found += _per_layer(reader, prefix, hidden, width, "post_per_layer_input_norm")
        cache = Cache("sliding" if sliding else "full", attention.kv_heads, attention.head_dim, attention.head_dim,
                      window if sliding else 0)  # fmt: skip
        target = _target(types[: count - shared], types[i]) if reads else None
        layers.append(Layer(tuple(found), () if reads else (cache,), target))
    embed = parts.embedding("model.embed_tokens", vocab, hidden)
    first = [embed, *(_tables(reader, "model", hidden, width, count) if width else ())]
    tied = reader.flag("tie_word_embeddings", default=True)
    last = parts.norm("model.norm", hidden) + ([] if tied else parts.head("lm_head", vocab, hidden))
    rules = [*near.rules(), *far.rules(), TpRule("MLP features", inner)]
    rules += [TpRule("per-layer features", count * width)] if width else []
    rules += [TpRule("expert features", narrow)] if experts else []
    max_position = reader.integer("max_position_embeddings", default=131_072, limit="length")
    return ModelArch(
        model_type=reader.text("model_type"), architecture=architecture(config), hidden=hidden, vocab=vocab,
        max_position=max_position, dtype=model_dtype(reader, config), layers=tuple(layers), first=tuple(first),
        last=tuple(last), shared=(embed,) if tied else (), rules=tuple(dict.fromkeys(rules)),
        intermediate=max(inner, narrow), heads=heads, head_dim=wide, experts=experts,
        experts_per_token=reader.integer("top_k_experts", default=1, limit="experts") if experts else 0,
        rotary_elements=max_position * (dim + wide), ends="everywhere",
    )  # fmt: skip


def _target(earlier: list[str], kind: str) -> int | None:
    """The last of the ``earlier`` layers of this kind."""
    return max((i for i, one in enumerate(earlier) if one == kind), default=None)


def _experts(prefix: str, hidden: int, count: int, inner: int) -> list[Parameter]:
    found = [
        *parts.router(f"{prefix}.router.proj", count, hidden),
        parts.vector(f"{prefix}.router.scale", hidden),
        parts.vector(f"{prefix}.router.per_expert_scale", count),
        *parts.experts(prefix, count, hidden, inner),
    ]
    for name in ("post_feedforward_layernorm_1", "post_feedforward_layernorm_2", "pre_feedforward_layernorm_2"):
        found += parts.norm(f"{prefix}.{name}", hidden)
    return found
