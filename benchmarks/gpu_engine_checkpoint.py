"""Llama-shaped checkpoints with random weights, written layer by layer: what benchmarks/gpu_engine.py serves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from llama_1b import GROUP, matrix
from safetensors.torch import save_file


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama."""

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    positions: int = 8192

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


SHAPES = {
    "llama3-8b": Shape(4096, 14336, 32, 32, 8, 128256),
    "tiny": Shape(256, 512, 2, 4, 2, 1024),
}


def config(shape: Shape, quantized: bool) -> dict[str, object]:
    """config.json."""
    found: dict[str, object] = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "torch_dtype": "bfloat16",
        "hidden_size": shape.hidden, "intermediate_size": shape.inner, "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads, "head_dim": shape.head_dim,
        "vocab_size": shape.vocabulary, "max_position_embeddings": shape.positions, "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}, "tie_word_embeddings": False,
        "bos_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip
    if quantized:
        found["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False,
                                        "sym": True, "checkpoint_format": "gptq"}  # fmt: skip
    return found


def layer(shape: Shape, index: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """One decoder layer's tensors in GPTQ's 4-bit form."""
    stem, found = f"model.layers.{index}", dict[str, torch.Tensor]()
    heads, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    sizes = {"self_attn.q_proj": (heads, shape.hidden), "self_attn.k_proj": (kv, shape.hidden),
             "self_attn.v_proj": (kv, shape.hidden), "self_attn.o_proj": (shape.hidden, heads),
             "mlp.gate_proj": (shape.inner, shape.hidden), "mlp.up_proj": (shape.inner, shape.hidden),
             "mlp.down_proj": (shape.hidden, shape.inner)}  # fmt: skip
    for name, (n, k) in sizes.items():
        found |= matrix(f"{stem}.{name}", n, k, "gptq", generator)
    for norm in ("input_layernorm", "post_attention_layernorm"):
        found[f"{stem}.{norm}.weight"] = torch.ones(shape.hidden, dtype=torch.bfloat16)
    return found


def parts(shape: Shape) -> Iterator[dict[str, torch.Tensor]]:
    """The checkpoint's files, one after the other."""
    generator = torch.Generator().manual_seed(0)
    for index in range(shape.layers):
        yield layer(shape, index, generator)
    for name in ("model.embed_tokens", "lm_head"):
        table = torch.empty(shape.vocabulary, shape.hidden, dtype=torch.bfloat16)
        yield {f"{name}.weight": table.normal_(0, 0.02, generator=generator)}
    yield {"model.norm.weight": torch.ones(shape.hidden, dtype=torch.bfloat16)}


def write(shape: Shape, folder: Path) -> tuple[Path, Path]:
    """A GPTQ 4-bit checkpoint, and beside it a folder with only the 16-bit model's config; existing ones are kept."""
    quantized, dense = folder / "gptq", folder / "bf16"
    dense.mkdir(parents=True, exist_ok=True)
    (dense / "config.json").write_text(json.dumps(config(shape, False), indent=1))
    if (quantized / "config.json").is_file():
        return quantized, dense
    quantized.mkdir(parents=True, exist_ok=True)
    places, total = dict[str, str](), 0
    for number, tensors in enumerate(parts(shape), 1):
        name = f"model-{number:05}-of-{shape.layers + 3:05}.safetensors"
        save_file(tensors, quantized / name, {"format": "pt"})
        places |= dict.fromkeys(tensors, name)
        total += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (quantized / "model.safetensors.index.json").write_text(json.dumps(index))
    (quantized / "config.json").write_text(json.dumps(config(shape, True), indent=1))  # last: the folder is whole
    return quantized, dense
