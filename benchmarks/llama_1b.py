"""A Llama-3.2-1B with random weights, quantized or not: what the engine benchmarks load.

Random words are valid 4-bit codes, so nothing has to be quantized: a checkpoint is written at the speed of the disk.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 2048, 8192, 16, 32, 8, 64
GROUP = 128
FORMATS = ("bf16", "awq", "gptq")
# Of Llama-3.2, which ties the LM head to the embeddings, and of Llama-2, whose head is a matrix of its own.
VOCABULARIES = {128256: True, 32000: False}


@dataclass(frozen=True)
class Shape:
    """A checkpoint's kind: ``format`` is one of ``FORMATS``, ``vocabulary`` one of ``VOCABULARIES``.

    ``quantized_head``: the LM head is a 4-bit matrix of its own (only with a format that is not bf16).
    """

    format: str
    vocabulary: int
    quantized_head: bool = False

    @property
    def tied(self) -> bool:
        return VOCABULARIES[self.vocabulary] and not self.quantized_head

    @property
    def name(self) -> str:
        return f"llama-1b-{self.format}-{self.vocabulary}" + ("-qhead" if self.quantized_head else "")


def linears() -> Iterator[tuple[str, int, int]]:
    """(name, N, K) of every matrix of the decoder layers."""
    kv = KV_HEADS * HEAD_DIM
    for i in range(LAYERS):
        stem = f"model.layers.{i}"
        yield f"{stem}.self_attn.q_proj", HEADS * HEAD_DIM, HIDDEN
        yield f"{stem}.self_attn.k_proj", kv, HIDDEN
        yield f"{stem}.self_attn.v_proj", kv, HIDDEN
        yield f"{stem}.self_attn.o_proj", HIDDEN, HEADS * HEAD_DIM
        yield f"{stem}.mlp.gate_proj", INTERMEDIATE, HIDDEN
        yield f"{stem}.mlp.up_proj", INTERMEDIATE, HIDDEN
        yield f"{stem}.mlp.down_proj", HIDDEN, INTERMEDIATE


def _words(rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(-(1 << 31), 1 << 31, (rows, columns), dtype=torch.int32, generator=generator)


def matrix(name: str, n: int, k: int, kind: str, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Tensors of one random matrix (N, K) in the form ``kind``, one of ``FORMATS``."""
    if kind == "bf16":
        weight = torch.empty(n, k, dtype=torch.bfloat16).normal_(0, k**-0.5, generator=generator)
        return {f"{name}.weight": weight}
    groups = k // GROUP
    # Codes spread evenly over 16 values have a standard deviation of 4.6.
    found = {f"{name}.scales": torch.full((groups, n), k**-0.5 / 4.6, dtype=torch.float16)}
    if kind == "awq":
        found[f"{name}.qweight"] = _words(k, n // 8, generator)
        found[f"{name}.qzeros"] = torch.full((groups, n // 8), 0x77777777, dtype=torch.int32)
    else:
        found[f"{name}.qweight"] = _words(k // 8, n, generator)
        found[f"{name}.qzeros"] = torch.full((groups, n // 8), 0x77777777, dtype=torch.int32)
        found[f"{name}.g_idx"] = (torch.arange(k) // GROUP).int()
    return found


def config(shape: Shape) -> dict[str, Any]:
    """config.json."""
    found: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": shape.tied,
    }
    if shape.format == "awq":
        found["quantization_config"] = {
            "quant_method": "awq",
            "bits": 4,
            "group_size": GROUP,
            "zero_point": True,
            "version": "gemm",
            **({"lm_head": True} if shape.quantized_head else {}),
        }
    elif shape.format == "gptq":
        found["quantization_config"] = {
            "quant_method": "gptq",
            "bits": 4,
            "group_size": GROUP,
            "sym": True,
            "desc_act": False,
            "lm_head": shape.quantized_head,
            "checkpoint_format": "gptq",
        }
    return found


def write(shape: Shape, root: Path) -> Path:
    """The checkpoint's folder under ``root``, written unless it is there."""
    folder = root / shape.name
    if (folder / "config.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    norm = torch.ones(HIDDEN, dtype=torch.bfloat16)
    tensors = {"model.norm.weight": norm}
    tensors |= matrix("model.embed_tokens", shape.vocabulary, HIDDEN, "bf16", generator)
    if not shape.tied:
        head = shape.format if shape.quantized_head else "bf16"
        tensors |= matrix("lm_head", shape.vocabulary, HIDDEN, head, generator)
    for i in range(LAYERS):
        for which in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{i}.{which}.weight"] = norm.clone()
    for name, n, k in linears():
        tensors |= matrix(name, n, k, shape.format, generator)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config(shape), indent=1))
    return folder
