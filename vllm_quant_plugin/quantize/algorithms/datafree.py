"""FP8, INT8 and round-to-nearest: no data, tensor by tensor, in memory of the largest module.

Per-tensor FP8 scales are shared by modules that vLLM fuses (q, k, v; gate, up): one matrix has one scale.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from vllm_quant_kernels.canonical import CanonicalWeight
from vllm_quant_plugin.checkpoint import Checkpoint
from vllm_quant_plugin.formats import get_format
from vllm_quant_plugin.quantize.io.shards import ModelWriter, read_tensor
from vllm_quant_plugin.quantize.modules import Linear, siblings
from vllm_quant_plugin.quantize.recipe import Recipe
from vllm_quant_plugin.rtn import quantize_fp8, quantize_int
from vllm_quant_plugin.scheme import PER_TENSOR, Scheme

Progress = Callable[[str, int, int], None]
E4M3_MAX = 448.0


def stored_scale_dtype(scheme: Scheme, weight: torch.dtype) -> torch.dtype:
    """The dtype that scales are kept in: what the format's own tools write."""
    if scheme.storage in ("awq", "gptq"):
        return torch.float16
    if scheme.storage == "fp8":
        return torch.float32
    return torch.float32 if scheme.storage == "int-quantized" else weight


def quantize_weight(weight: torch.Tensor, scheme: Scheme, scale_dtype: torch.dtype | None = None) -> CanonicalWeight:
    """Round one (N, K) weight to ``scheme``.

    Args:
        scale_dtype: of integer scales; None for what the format keeps for the weight's dtype.

    Raises:
        ValueError: the weight holds a NaN or an infinity.
    """
    if not bool(torch.isfinite(weight).all()):
        raise ValueError("holds NaN or infinity")
    if scheme.kind == "int":
        dtype = scale_dtype or stored_scale_dtype(scheme, weight.dtype)
        return quantize_int(weight, scheme.bits, scheme.group_size, symmetric=scheme.symmetric, scale_dtype=dtype)
    if scheme.kind != "fp8_e4m3":
        raise ValueError(f"{scheme.kind} is not written")
    return quantize_fp8(weight, scheme.group_size, block_n=scheme.block[0] if scheme.block else 1)


def quantize_with_scale(weight: torch.Tensor, scale: float) -> CanonicalWeight:
    """FP8 E4M3 with one given scale for the whole (N, K) weight."""
    codes = (weight.float() / scale).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).view(torch.uint8)
    scales = torch.full((weight.shape[0], 1), scale, dtype=torch.float32)
    return CanonicalWeight(codes, scales, 8, weight.shape[1], kind="fp8_e4m3")


class _SharedScale:
    """The scale of a fused group of modules, from their largest weight; each tensor is read once more."""

    def __init__(self, checkpoint: Checkpoint, names: set[str]) -> None:
        self._checkpoint, self._names = checkpoint, names
        self._known: dict[tuple[str, ...], float] = {}

    def __call__(self, name: str) -> float:
        group = tuple(n for n in siblings(name) if n in self._names)
        if group not in self._known:
            peaks = [float(read_tensor(self._checkpoint, f"{n}.weight").float().abs().max()) for n in group]
            self._known[group] = max(peaks) / E4M3_MAX or 1.0
        return self._known[group]


def quantize_data_free(
    checkpoint: Checkpoint, modules: list[Linear], recipe: Recipe, writer: ModelWriter, progress: Progress
) -> None:
    """Write every tensor of the checkpoint, the given modules quantized.

    Raises:
        ValueError: a weight holds a NaN or an infinity; the message names it.
    """
    chosen = {f"{m.name}.weight": m.name for m in modules}
    shared, done = _SharedScale(checkpoint, set(chosen.values())), 0
    by_file = sorted(checkpoint.tensors.values(), key=lambda t: (t.file.name, t.name))
    for info in by_file:
        tensor = read_tensor(checkpoint, info.name)
        module = chosen.get(info.name)
        scheme = recipe.scheme_for(module) if module else None
        if module is None or scheme is None:
            writer.add(info.name, tensor)
            continue
        try:
            one_scale = scheme.group_size == PER_TENSOR
            weight = quantize_with_scale(tensor, shared(module)) if one_scale else quantize_weight(tensor, scheme)
        except ValueError as err:
            raise ValueError(f"{info.name} {err}") from None
        writer.add_module(module, get_format(scheme).pack(weight, scheme))
        done += 1
        progress(module, done, len(modules))
