"""What the builders of mixed models share: attention layers, their cache, and putting the model together. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm_quant_plugin.architecture.arch import Cache, Ends, Layer, ModelArch, TpRule
from vllm_quant_plugin.architecture.families import parts
from vllm_quant_plugin.architecture.families.decoder import DTYPE_BYTES, architecture, model_dtype
from vllm_quant_plugin.architecture.reader import Reader
from vllm_quant_plugin.errors import CheckpointError

Config = Mapping[str, Any]


def assemble(
    reader: Reader, config: Config, layers: list[Layer], rules: list[TpRule], *, root: str = "model",
    embed: str = "embed_tokens", norm: str = "norm", tied: bool = False, rotary: int = 0, inner: int = 0,
    heads: tuple[int, int] = (0, 0), experts: tuple[int, int] = (0, 0), state_dtype: str = "",
    ends: Ends = "guarded", pipeline: bool = True,
) -> ModelArch:  # fmt: skip
    hidden, vocab = reader.integer("hidden_size"), reader.integer("vocab_size", limit="vocab")
    table = parts.embedding(f"{root}.{embed}", vocab, hidden)
    last = parts.norm(f"{root}.{norm}", hidden) + ([] if tied else parts.head("lm_head", vocab, hidden))
    unique = tuple(dict.fromkeys(rules))
    return ModelArch(
        model_type=reader.text("model_type"), architecture=architecture(config), hidden=hidden, vocab=vocab,
        max_position=reader.integer("max_position_embeddings", default=8192, limit="length"),
        dtype=model_dtype(reader, config), layers=tuple(layers), first=(table,), last=tuple(last),
        shared=(table,) if tied else (), rules=unique, intermediate=inner, heads=heads[0], head_dim=heads[1],
        experts=experts[0], experts_per_token=experts[1], rotary_elements=rotary,
        state_dtype=state_dtype if state_dtype in DTYPE_BYTES else "", ends=ends, pipeline=pipeline,
    )  # fmt: skip


def attention_of(reader: Reader, hidden: int, **fields: Any) -> parts.Attention:
    heads = reader.integer("num_attention_heads")
    head_dim = reader.integer("head_dim", "attention_head_dim", default=max(hidden // heads, 1))
    kv_heads = reader.integer("num_key_value_heads", default=heads)
    return parts.Attention(hidden, heads, kv_heads, head_dim, head_dim, **fields)


def full_cache(attention: parts.Attention) -> Cache:
    return Cache("full", attention.kv_heads, attention.head_dim, attention.head_dim_v)


def layer_types(reader: Reader, count: int, default: list[str] | None = None, *names: str) -> list[str]:
    """The kind of each of ``count`` layers.

    Raises:
        CheckpointError: fewer kinds than layers.
    """
    found = reader.strings(*(names or ("layer_types",)))
    types = found if found is not None else default
    if types is None or len(types) < count:
        named = len(types) if types is not None else 0
        raise CheckpointError(f"config.json: layer_types names {named} of {count} layers", "fix config.json")
    return types
