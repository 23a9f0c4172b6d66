"""Small random models of real architectures: config.json fields and dense weights, the seed of every test checkpoint.

Sizes are small enough that an engine starts in seconds and large enough that every format fits:
K and N are multiples of 256, heads and KV heads can be split over two ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD_DIM = 256, 512, 4, 2, 64
LAYERS, VOCAB, EXPERTS = 2, 256, 4


@dataclass(frozen=True)
class TinyModel:
    """A model before quantization.

    Attributes:
        config: config.json without a quantization_config.
        tensors: float32 weights by checkpoint name.
        linears: names of the modules that a quantizer converts (without lm_head), in order.
    """

    config: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    linears: tuple[str, ...]


_COMMON: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "vocab_size": VOCAB,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
    "tie_word_embeddings": False,
}

_FAMILY: dict[str, dict[str, Any]] = {
    "llama": {"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
    "llama-tied": {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": True},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"},
    "mixtral": {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": 2,
    },
}
ARCHITECTURES = tuple(_FAMILY)


def tiny_model(architecture: str, seed: int = 0) -> TinyModel:
    """Random weights of ``architecture``, one of ``ARCHITECTURES``; the same for the same seed."""
    config = {**_COMMON, **_FAMILY[architecture]}
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    linears: list[str] = []

    def matrix(name: str, n: int, k: int, *, quantizable: bool = True) -> None:
        # Input-dependent column scales, so that a permutation or group mistake changes the result.
        columns = torch.linspace(0.25, 1.75, k)[torch.randperm(k, generator=generator)]
        tensors[f"{name}.weight"] = torch.randn(n, k, generator=generator) * columns / k**0.5
        if quantizable:
            linears.append(name)

    def norm(name: str, size: int) -> None:
        tensors[f"{name}.weight"] = 1 + 0.1 * torch.randn(size, generator=generator)

    # Tied embeddings are the LM head too: of its size, so that logits are of the order of one.
    size = HIDDEN**-0.5 if config["tie_word_embeddings"] else 1.0
    tensors["model.embed_tokens.weight"] = size * torch.randn(VOCAB, HIDDEN, generator=generator)
    for i in range(LAYERS):
        stem = f"model.layers.{i}"
        attention, heads, kv = f"{stem}.self_attn", HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
        for part, n, k in (("q", heads, HIDDEN), ("k", kv, HIDDEN), ("v", kv, HIDDEN), ("o", HIDDEN, heads)):
            matrix(f"{attention}.{part}_proj", n, k)
            if architecture == "qwen2" and part != "o":
                tensors[f"{attention}.{part}_proj.bias"] = 0.2 * torch.randn(n, generator=generator)
        if architecture == "qwen3":
            norm(f"{attention}.q_norm", HEAD_DIM)
            norm(f"{attention}.k_norm", HEAD_DIM)
        if architecture == "mixtral":
            matrix(f"{stem}.block_sparse_moe.gate", EXPERTS, HIDDEN, quantizable=False)
            for e in range(EXPERTS):
                expert = f"{stem}.block_sparse_moe.experts.{e}"
                matrix(f"{expert}.w1", INTERMEDIATE, HIDDEN)
                matrix(f"{expert}.w2", HIDDEN, INTERMEDIATE)
                matrix(f"{expert}.w3", INTERMEDIATE, HIDDEN)
        else:
            matrix(f"{stem}.mlp.gate_proj", INTERMEDIATE, HIDDEN)
            matrix(f"{stem}.mlp.up_proj", INTERMEDIATE, HIDDEN)
            matrix(f"{stem}.mlp.down_proj", HIDDEN, INTERMEDIATE)
        norm(f"{stem}.input_layernorm", HIDDEN)
        norm(f"{stem}.post_attention_layernorm", HIDDEN)
    norm("model.norm", HIDDEN)
    if not config["tie_word_embeddings"]:
        matrix("lm_head", VOCAB, HIDDEN, quantizable=False)
    return TinyModel(config, tensors, tuple(linears))
