"""Whisper: an encoder, and a decoder whose layers also attend to the encoder's output. No torch.

Source: vllm/model_executor/models/whisper.py of 0.32 and 0.33. vLLM reserves the cross-attention cache for as many
encoder tokens as one step may take (``max_num_encoder_input_tokens``, which is max_num_batched_tokens).
"""

from __future__ import annotations

from vllm_quant_plugin.architecture.arch import Cache, Layer, ModelArch, Parameter, TpRule
from vllm_quant_plugin.architecture.families import parts
from vllm_quant_plugin.architecture.families.decoder import architecture, model_dtype
from vllm_quant_plugin.architecture.families.mixed import Config
from vllm_quant_plugin.architecture.reader import Reader

_NAMES = ("q_proj", "k_proj", "v_proj", "out_proj")


def _attention(prefix: str, width: int, heads: int) -> list[Parameter]:
    """Multi-head attention; vLLM gives the keys a bias that the checkpoint lacks."""
    dim = max(width // heads, 1)
    attention = parts.Attention(width, heads, heads, dim, dim, qkv_bias=True, o_bias=True, names=_NAMES)
    return attention.parameters(prefix)


def _block(prefix: str, width: int, inner: int) -> list[Parameter]:
    return [
        *parts.norm(f"{prefix}.self_attn_layer_norm", width, bias=True),
        *parts.linear(f"{prefix}.fc1", inner, width, "column", bias=True),
        *parts.linear(f"{prefix}.fc2", width, inner, "row", bias=True),
        *parts.norm(f"{prefix}.final_layer_norm", width, bias=True),
    ]


def whisper(reader: Reader, config: Config) -> ModelArch:
    """Whisper. Embeddings are whole on every rank; the head is the decoder's embedding."""
    width, vocab = reader.integer("d_model"), reader.integer("vocab_size", limit="vocab")
    heads = reader.integer("decoder_attention_heads"), reader.integer("encoder_attention_heads")
    inner = reader.integer("decoder_ffn_dim"), reader.integer("encoder_ffn_dim")
    source = reader.integer("max_source_positions", default=1500, limit="length")
    target = reader.integer("max_target_positions", "max_length", default=448, limit="length")
    bins = reader.integer("num_mel_bins", default=80)
    dim = max(width // heads[0], 1)
    layers = []
    for i in range(reader.integer("decoder_layers", limit="layers")):
        prefix = f"model.decoder.layers.{i}"
        found = [
            *_attention(f"{prefix}.self_attn", width, heads[0]),
            *_attention(f"{prefix}.encoder_attn", width, heads[0]),
            *parts.norm(f"{prefix}.encoder_attn_layer_norm", width, bias=True),
            *_block(prefix, width, inner[0]),
        ]
        caches = (Cache("full", heads[0], dim, dim), Cache("cross", heads[0], dim, dim, source))
        layers.append(Layer(tuple(found), caches))
    first = [
        Parameter("model.encoder.conv1.weight", (width, bins, 3), "replicated"),
        parts.vector("model.encoder.conv1.bias", width),
        Parameter("model.encoder.conv2.weight", (width, width, 3), "replicated"),
        parts.vector("model.encoder.conv2.bias", width),
        Parameter("model.encoder.embed_positions.weight", (source, width), "replicated"),
        *parts.norm("model.encoder.layer_norm", width, bias=True),
        Parameter("model.decoder.embed_tokens.weight", (vocab, width), "replicated"),
        Parameter("model.decoder.embed_positions.weight", (target, width), "replicated"),
    ]
    for i in range(reader.integer("encoder_layers", limit="layers")):
        prefix = f"model.encoder.layers.{i}"
        first += [*_attention(f"{prefix}.self_attn", width, heads[1]), *_block(prefix, width, inner[1])]
    rules = [TpRule("decoder heads", heads[0]), TpRule("encoder heads", heads[1]), TpRule("decoder features", inner[0]),
             TpRule("encoder features", inner[1])]  # fmt: skip
    return ModelArch(
        model_type=reader.text("model_type"), architecture=architecture(config), hidden=width, vocab=vocab,
        max_position=target, dtype=model_dtype(reader, config), layers=tuple(layers), first=tuple(first),
        last=tuple(parts.norm("model.decoder.layer_norm", width, bias=True)), rules=tuple(dict.fromkeys(rules)),
        intermediate=max(inner), heads=heads[0], head_dim=dim, pipeline=False,
    )  # fmt: skip
