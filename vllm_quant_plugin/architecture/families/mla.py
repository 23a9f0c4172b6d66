"""Multi-head latent attention (DeepSeek V2 and V3, Kimi K2). No torch.

Source: vllm/model_executor/models/deepseek_v2.py (DeepseekV2MLAAttention) and
layers/attention/mla_attention.py of 0.32 and 0.33.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm_quant_plugin.architecture.arch import Cache, Layer, ModelArch, Parameter, TpRule
from vllm_quant_plugin.architecture.families import parts
from vllm_quant_plugin.architecture.families.decoder import architecture, model_dtype, rotary_elements
from vllm_quant_plugin.architecture.families.moe import deepseek
from vllm_quant_plugin.architecture.reader import Reader

MODEL_TYPES = ("deepseek_v2", "deepseek_v3", "glm4_moe_lite", "kimi_k2")


def _attention(
    reader: Reader, prefix: str, hidden: int, heads: int, dims: tuple[int, int, int, int]
) -> list[Parameter]:
    nope, rope, value, latent = dims
    bias = reader.flag("attention_bias")
    q_rank = reader.integer("q_lora_rank", default=0, least=0)
    found: list[Parameter] = []
    if q_rank:
        found += parts.linear(f"{prefix}.q_a_proj", q_rank, hidden, "replicated", bias=bias, fused="first")
        found += parts.norm(f"{prefix}.q_a_layernorm", q_rank)
        found += parts.linear(f"{prefix}.q_b_proj", heads * (nope + rope), q_rank, "column")
    else:
        found += parts.linear(f"{prefix}.q_proj", heads * (nope + rope), hidden, "column")
    found += parts.linear(
        f"{prefix}.kv_a_proj_with_mqa", latent + rope, hidden, "replicated", bias=bias, fused="next" if q_rank else ""
    )
    found += parts.norm(f"{prefix}.kv_a_layernorm", latent)
    found += parts.linear(f"{prefix}.kv_b_proj", heads * (nope + value), latent, "column")
    found += parts.linear(f"{prefix}.o_proj", hidden, heads * value, "row", bias=bias)
    # W_UK and W_UV: vLLM keeps 16-bit copies of kv_b_proj for decoding beside the projection itself.
    found.append(Parameter(f"{prefix}.kv_b_proj.absorbed", (heads * (nope + value), latent), "column", derived=True))
    return found


def build(reader: Reader, config: Mapping[str, Any]) -> ModelArch:
    """A DeepSeek-like model with latent attention.

    Raises:
        CheckpointError: a key is missing or impossible.
    """
    count = reader.integer("num_hidden_layers", limit="layers")
    hidden, vocab = reader.integer("hidden_size"), reader.integer("vocab_size", limit="vocab")
    heads, inner = reader.integer("num_attention_heads"), reader.integer("intermediate_size")
    nope, rope = reader.integer("qk_nope_head_dim"), reader.integer("qk_rope_head_dim")
    value, latent = reader.integer("v_head_dim"), reader.integer("kv_lora_rank")
    max_position = reader.integer("max_position_embeddings", default=8192, limit="length")
    moe = deepseek(reader, count, hidden)
    cache = Cache("mla", 1, latent + rope, 0)
    layers = []
    for i in range(count):
        prefix = f"model.layers.{i}"
        found = _attention(reader, f"{prefix}.self_attn", hidden, heads, (nope, rope, value, latent))
        found += parts.norm(f"{prefix}.input_layernorm", hidden)
        found += parts.norm(f"{prefix}.post_attention_layernorm", hidden)
        found += moe.block(prefix) if moe.sparse[i] else parts.mlp(f"{prefix}.mlp", hidden, inner)
        layers.append(Layer(tuple(found), (cache,)))
    embed = parts.embedding("model.embed_tokens", vocab, hidden)
    last = parts.norm("model.norm", hidden) + parts.head("lm_head", vocab, hidden)  # vLLM ties none of these
    rules = [TpRule("attention heads", heads)]
    if not all(moe.sparse):
        rules.append(TpRule("MLP features", inner))
    if any(moe.sparse):
        rules.append(TpRule("expert features", moe.inner))
    return ModelArch(
        model_type=reader.text("model_type"), architecture=architecture(config), hidden=hidden, vocab=vocab,
        max_position=max_position, dtype=model_dtype(reader, config), layers=tuple(layers), first=(embed,),
        last=tuple(last), rules=tuple(rules), intermediate=moe.inner or inner,
        heads=heads, head_dim=nope + rope, experts=moe.count, experts_per_token=moe.active,
        rotary_elements=rotary_elements(reader, rope, max_position),
    )  # fmt: skip
