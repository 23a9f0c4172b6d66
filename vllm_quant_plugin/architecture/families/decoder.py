"""A transformer decoder of any ``Style`` from its config. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vllm_quant_plugin.architecture.arch import Cache, CacheKind, Layer, ModelArch, Parameter, TpRule
from vllm_quant_plugin.architecture.defaults import checks_heads
from vllm_quant_plugin.architecture.families import parts
from vllm_quant_plugin.architecture.families.moe import RULES as MOE_RULES
from vllm_quant_plugin.architecture.families.moe import Moe
from vllm_quant_plugin.architecture.families.style import Style
from vllm_quant_plugin.architecture.families.windows import RULES as WINDOW_RULES
from vllm_quant_plugin.architecture.reader import LIMITS, Reader
from vllm_quant_plugin.errors import CheckpointError

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def model_dtype(reader: Reader, config: Mapping[str, Any]) -> str:
    """``dtype`` or ``torch_dtype``, the text part's first; float16 like vLLM's ``auto`` for float32 checkpoints."""
    for source in (reader.config, config):
        for name in ("dtype", "torch_dtype"):
            value = source.get(name)
            if isinstance(value, str):
                value = value.removeprefix("torch.")
                if value in DTYPE_BYTES:
                    return value
    return "float32"


def rotary_elements(reader: Reader, head_dim: int, max_position: int) -> int:
    """Elements of one cos/sin table: a row of ``rotary_dim`` per position.

    YaRN and linear scaling lengthen the table to the scaled context; Llama 3 scaling does not
    (vLLM: layers/rotary_embedding).
    """
    scaling = reader.sub("rope_parameters") or reader.sub("rope_scaling")
    partial = reader.number("partial_rotary_factor", reader.number("rotary_pct", 1.0))
    length = max_position
    if scaling is not None:
        partial = scaling.number("partial_rotary_factor", partial)
        kind = scaling.text("rope_type") or scaling.text("type")
        factor = scaling.number("factor", 1.0)
        if kind in ("yarn", "deepseek_yarn"):
            original = scaling.integer("original_max_position_embeddings", default=max_position, limit="length")
            length = int(original * max(factor, 1.0))
        elif kind in ("linear", "dynamic"):
            length = int(max_position * max(factor, 1.0))
    return length * max(int(head_dim * min(partial, 1.0)), 0)


def tables(reader: Reader, style: Style, head_dim: int, max_position: int) -> int:
    """Elements of all cos/sin tables of a model."""
    if style.rotary == "none":
        return 0
    found = rotary_elements(reader, head_dim, max_position)
    if style.rotary == "float32":
        return 2 * found  # counted in elements of the 16-bit model dtype
    return found + max_position * head_dim if style.rotary == "two" else found


def attention_of(reader: Reader, style: Style, hidden: int) -> parts.Attention:
    heads = reader.integer("num_attention_heads")
    kv_heads = reader.integer("num_key_value_heads", default=heads)
    if reader.has("head_dim"):
        head_dim = reader.integer("head_dim")
    else:
        head_dim = hidden // heads
        if head_dim < 1:
            raise CheckpointError(f"config.json: {heads} heads for hidden_size {hidden}", "fix config.json")
    qk_norm = style.qk_norm(reader) if callable(style.qk_norm) else style.qk_norm
    return parts.Attention(
        hidden, heads, kv_heads, head_dim, head_dim,
        qkv_bias=style.qkv_bias(reader), o_bias=style.o_bias(reader), qk_norm=qk_norm,
        names=style.attention_names, norm_names=style.norm_names, gated=style.gated_attention,
    )  # fmt: skip


def window_cache(attention: parts.Attention, window: int) -> Cache:
    kind: CacheKind = "full" if not window else ("sliding" if window > 0 else "chunked")
    return Cache(kind, attention.kv_heads, attention.head_dim, attention.head_dim_v, abs(window))


def with_defaults(reader: Reader, style: Style) -> Reader:
    missing = {k: v for k, v in style.defaults.items() if reader.config.get(k) is None}
    return Reader({**reader.config, **missing}, reader.where) if missing else reader


def build(reader: Reader, config: Mapping[str, Any], style: Style, *, exact: bool = True) -> ModelArch:
    """The model that ``config`` describes, read as ``style`` says.

    Raises:
        CheckpointError: a key is missing or impossible.
    """
    reader = with_defaults(reader, style)
    count = reader.integer("num_hidden_layers", limit="layers")
    hidden, vocab = reader.integer("hidden_size"), reader.integer("vocab_size", limit="vocab")
    max_position = reader.integer("max_position_embeddings", "n_positions", "max_seq_len", default=8192, limit="length")
    attention = attention_of(reader, style, hidden)
    windows = WINDOW_RULES[style.window](reader, count)
    moe = MOE_RULES[style.moe](reader, count, hidden) if style.moe else None
    dense = moe is None or not all(moe.sparse)
    inner = reader.integer(*style.inner) if dense else 0
    tied = style.head == "embedding" or (
        style.head == "config" and reader.flag("tie_word_embeddings", default=style.tied)
    )
    layers = tuple(
        _layer(reader, style, attention, f"{style.root}.layers.{i}", windows[i], moe if moe and moe.sparse[i] else None,
               hidden, inner)
        for i in range(count)
    )  # fmt: skip
    embed = parts.embedding(f"{style.root}.{style.embed}", vocab, hidden)
    first = [embed]
    if style.positions:
        rows = reader.integer(style.positions, limit="length") + 2
        first.append(Parameter(f"{style.root}.embed_positions.weight", (rows, hidden), "replicated"))
    last = parts.norm(f"{style.root}.{style.final_norm}", hidden, bias=style.norm_bias) if style.norm_affine else []
    head_bias = style.head_bias(reader)
    if not tied:
        last += parts.head(style.lm_head, vocab, hidden, bias=head_bias)
    rules = [*attention.rules()]
    if dense:
        rules.append(TpRule("MLP features", inner))
    if moe:
        rules += [TpRule("expert features", moe.inner), *moe.rules]
    return ModelArch(
        transformers=style.rotary == "none", refusals=tuple(_refusals(reader, style, windows, vocab)),
        model_type=reader.text("model_type"), architecture=architecture(config), hidden=hidden, vocab=vocab,
        max_position=max_position, dtype=model_dtype(reader, config), layers=layers, first=tuple(first),
        last=tuple(last),
        shared=(embed,) if tied else (), rules=tuple(rules), intermediate=inner or (moe.inner if moe else 0),
        heads=attention.heads, head_dim=attention.head_dim, experts=moe.count if moe else 0,
        experts_per_token=moe.active if moe else 0,
        rotary_elements=tables(reader, style, attention.head_dim, max_position), exact=exact,
        ends=style.ends, pipeline=not tied or style.tied_pipeline, expert_limit=bool(moe and moe.limited),
    )  # fmt: skip


def _refusals(reader: Reader, style: Style, windows: list[int], vocab: int) -> Iterator[str]:
    """What vLLM's constructors refuse at any size."""
    if style.window == "qwen" and any(windows) and not all(windows):
        first = reader.integer("max_window_layers", default=len(windows), limit="layers", least=0)
        if first != len(windows):  # models/qwen2.py, Qwen2Model
            some = f"use_sliding_window with max_window_layers {first} of {len(windows)} layers"
            yield f"vLLM refuses a sliding window in some layers only: {some}"
    heads, hidden = reader.integer("num_attention_heads"), reader.integer("hidden_size")
    if hidden % heads and checks_heads(reader.text("model_type")):
        yield f"transformers refuses hidden_size {hidden}, which {heads} attention heads do not divide"
    kv_heads = reader.integer("num_key_value_heads", default=heads)
    if heads % kv_heads:
        yield f"{heads} attention heads do not divide into {kv_heads} KV heads"
    padding = reader.integer("pad_token_id", default=0, limit="vocab", least=-LIMITS["vocab"])
    if style.rotary == "none" and padding >= vocab:  # torch.nn.Embedding, in transformers' model code
        yield f"pad_token_id {padding} is outside the vocabulary of {vocab}: torch refuses the embedding"


def architecture(config: Mapping[str, Any]) -> str:
    """The first of ``architectures``, or ""."""
    names = config.get("architectures")
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""


def _layer(
    reader: Reader, style: Style, attention: parts.Attention, prefix: str, window: int, moe: Moe | None, hidden: int,
    inner: int,
) -> Layer:  # fmt: skip
    found: list[Parameter] = attention.parameters(f"{prefix}.{style.attention}")
    if style.sinks:
        found.append(Parameter(f"{prefix}.{style.attention}.sinks", (attention.heads,), "column"))
    if style.norm_affine:
        for name in style.norms:
            found += parts.norm(f"{prefix}.{name}", hidden, bias=style.norm_bias)
    if moe is not None:
        found += moe.block(prefix)
    else:
        found += parts.mlp(
            f"{prefix}.{style.mlp}",
            hidden,
            inner,
            gated=style.gated,
            bias=style.mlp_bias(reader),
            names=style.mlp_names,
            whole=style.rotary == "none" and style.mlp_names[0] == style.mlp_names[1],
        )
    return Layer(tuple(found), (window_cache(attention, window),))
