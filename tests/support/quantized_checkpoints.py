"""Checkpoints in every format, written from a small dense model, each with its reference.

The reference is the same model with the quantized weights multiplied out, unquantized on disk: what
a correct loader and kernel must reproduce.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.support.recipes import Recipe
from tests.support.tiny_models import LAYERS, TinyModel
from vllm_quant_kernels.canonical import CanonicalWeight
from vllm_quant_kernels.scheme import Int
from vllm_quant_plugin.formats import get_format
from vllm_quant_plugin.rtn import quantize, quantize_int
from vllm_quant_plugin.schemes import StoredScheme

# Modules that vLLM fuses share one activation-order permutation, unless a recipe says otherwise.
_FUSED = {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "gate_proj": "up", "up_proj": "up", "w1": "up", "w3": "up"}


def quantize_weight(
    weight: torch.Tensor, scheme: StoredScheme, permutation: torch.Tensor | None = None, *, half_scales: bool = False
) -> CanonicalWeight:
    """Round-to-nearest of a float32 (N, K) weight into ``scheme``.

    With act-order the columns are quantized in the order of ``permutation``, and g_idx tells
    each column's group, as GPTQ leaves them.
    """
    half = half_scales or scheme.storage.format in ("awq", "gptq")
    scale_dtype = torch.float16 if half else None
    if not scheme.act_order:
        return quantize(weight, scheme, scale_dtype)
    assert permutation is not None
    ordered = quantize_int(
        weight[:, permutation], scheme.bits, scheme.group_size, symmetric=scheme.symmetric, scale_dtype=scale_dtype
    )
    back = torch.argsort(permutation)
    group = torch.arange(weight.shape[1]) // scheme.group_of(weight.shape[1])
    return replace(ordered, codes=ordered.codes[:, back].contiguous(), g_idx=group[back].int())


def static_activation(scheme: StoredScheme, low: float, high: float) -> dict[str, torch.Tensor]:
    """``input_scale`` (and ``input_zero_point``) of a module whose input lies in [low, high]."""
    activation = scheme.activation
    if activation is None or activation.dynamic:
        return {}
    top = max(abs(low), abs(high))
    if not isinstance(activation.value, Int):
        return {"input_scale": torch.tensor([top / 448.0])}
    if activation.symmetric:
        return {"input_scale": torch.tensor([top / 127])}
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / 255
    return {
        "input_scale": torch.tensor([scale]),
        "input_zero_point": torch.tensor([round(-128 - low / scale)]).to(torch.int8),
    }


@dataclass(frozen=True)
class Written:
    """Where a recipe's checkpoint and its reference are, and the reference's tensors.

    Attributes:
        folder: the quantized checkpoint (the dense one for online quantization).
        reference: the dense checkpoint with the quantized weights multiplied out.
        dense: the reference's tensors.
        schemes: scheme of every quantized module.
        static: input_scale and input_zero_point of modules with static activations.
        kv_scales: (k, v) scales of the FP8 cache, None where the cache is not quantized.
    """

    folder: Path
    reference: Path
    dense: dict[str, torch.Tensor]
    schemes: dict[str, StoredScheme]
    static: dict[str, dict[str, torch.Tensor]]
    kv_scales: tuple[float, float] | None


def write_folder(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Path:
    """A model folder with one safetensors file."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    return folder


def write_checkpoint(
    folder: Path,
    model: TinyModel,
    recipe: Recipe,
    *,
    input_ranges: Mapping[str, tuple[float, float]] | None = None,
    damage: Callable[[dict[str, torch.Tensor]], None] | None = None,
    seed: int = 1,
) -> Written:
    """Write ``model`` quantized by ``recipe`` to ``folder``/quantized and its reference to ``folder``/reference.

    Args:
        input_ranges: (low, high) of every module's input by name, for static activations.
        damage: may change the quantized tensors before they are written.
    """
    generator = torch.Generator().manual_seed(seed)
    permutations: dict[str, torch.Tensor] = {}
    stored, dense = dict(model.tensors), dict(model.tensors)
    schemes: dict[str, StoredScheme] = {}
    static: dict[str, dict[str, torch.Tensor]] = {}
    for name in (*model.linears, "lm_head"):
        scheme = recipe.scheme_of(name)
        if scheme is None or f"{name}.weight" not in model.tensors:
            continue
        schemes[name] = scheme
        weight = model.tensors[f"{name}.weight"]
        stem, _, leaf = name.rpartition(".")
        key = name if recipe.separate_g_idx else f"{stem}.{_FUSED.get(leaf, leaf)}"
        if key not in permutations:
            permutations[key] = torch.randperm(weight.shape[1], generator=generator)
        canonical = quantize_weight(weight, scheme, permutations[key], half_scales=recipe.half_scales)
        dense[f"{name}.weight"] = canonical.dequantize(torch.float32)
        if recipe.scheme is not None or name == "lm_head":
            del stored[f"{name}.weight"]
            for leaf, tensor in get_format(scheme).pack(canonical, scheme).items():
                stored[f"{name}.{leaf}"] = tensor
            if input_ranges is not None:
                static[name] = static_activation(scheme, *input_ranges[name])
                stored |= {f"{name}.{leaf}": tensor for leaf, tensor in static[name].items()}
    for layer in range(LAYERS if recipe.kv_scales else 0):
        for which, value in zip("kv", recipe.kv_scales or (), strict=True):
            stored[f"model.layers.{layer}.self_attn.{which}_scale"] = torch.tensor([value])
    if damage is not None:
        damage(stored)
    config = dict(model.config)
    if recipe.config is not None:
        config["quantization_config"] = dict(recipe.config)
    quantized = write_folder(folder / "quantized", config, stored)
    reference = write_folder(folder / "reference", model.config, dense)
    return Written(quantized, reference, dense, schemes, static, recipe.kv_scales)
