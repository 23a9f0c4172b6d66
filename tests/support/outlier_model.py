"""The bundled model with outlier channels in the activations: the same function, harder to quantize.

A share of the channels that a linear module reads is made ``factor`` times as large, and the columns of the
weights that read them as much smaller:

    norm -> q, k, v      norm -> gate, up      v -> o (through attention)      up -> down

which is what trained models of billions of parameters have by themselves and a small model has not.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

FACTOR, SHARE = 30.0, 0.01


def _loud(width: int, share: float, generator: torch.Generator) -> torch.Tensor:
    return torch.randperm(width, generator=generator)[: max(1, round(width * share))]


def write_outlier_model(
    source: Path, target: Path, *, factor: float = FACTOR, share: float = SHARE, seed: int = 0
) -> Path:
    """Write ``source``, a Llama in one or more safetensors files, with outlier channels into ``target``.

    The function stays up to the rounding of the stored dtype: 30 is no power of two, so weights move by up to half
    a unit in their last place. Compare quantized models with this one, not with ``source``.

    Args:
        factor: how much louder.
        share: of the channels of each input, at least one.
        seed: chooses the channels.

    Returns:
        ``target``.
    """
    target.mkdir(parents=True)
    for file in source.iterdir():
        if file.is_file() and file.suffix != ".safetensors":
            shutil.copyfile(file, target / file.name)
    files = {file.name: load_file(file) for file in sorted(source.glob("*.safetensors"))}
    tensors = {name: tensor for part in files.values() for name, tensor in part.items()}
    generator = torch.Generator().manual_seed(seed)

    def scale(name: str, index: torch.Tensor, by: float, columns: bool = False) -> None:
        part = tensors[name][:, index] if columns else tensors[name][index]
        part = (part.float() * by).to(part.dtype)
        if columns:
            tensors[name][:, index] = part
        else:
            tensors[name][index] = part

    stems = sorted({name.partition(".self_attn")[0] for name in tensors if ".self_attn." in name})
    for stem in stems:
        norms = {
            "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
        }
        for norm, readers in norms.items():
            index = _loud(tensors[f"{stem}.{norm}.weight"].shape[0], share, generator)
            scale(f"{stem}.{norm}.weight", index, factor)
            for reader in readers:
                scale(f"{stem}.{reader}.weight", index, 1 / factor, columns=True)
        index = _loud(tensors[f"{stem}.mlp.up_proj.weight"].shape[0], share, generator)
        scale(f"{stem}.mlp.up_proj.weight", index, factor)
        scale(f"{stem}.mlp.down_proj.weight", index, 1 / factor, columns=True)
        rows = tensors[f"{stem}.self_attn.v_proj.weight"].shape[0]
        k = tensors[f"{stem}.self_attn.o_proj.weight"].shape[1]
        index = _loud(rows, share, generator)
        scale(f"{stem}.self_attn.v_proj.weight", index, factor)
        scale(f"{stem}.self_attn.o_proj.weight", _readers(index, rows, k, source), 1 / factor, columns=True)
    for name, part in files.items():
        save_file({n: tensors[n].contiguous() for n in part}, target / name, metadata={"format": "pt"})
    return target


def _readers(index: torch.Tensor, rows: int, k: int, source: Path) -> torch.Tensor:
    """The columns of o_proj that read the given rows of v_proj: one for each query head that shares the KV head."""
    head_dim = json.loads((source / "config.json").read_text())["head_dim"]
    shared = k // rows
    head, within = index // head_dim, index % head_dim
    return torch.cat([(head * shared + q) * head_dim + within for q in range(shared)])
