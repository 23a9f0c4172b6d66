"""Round-to-nearest quantization of a weight: no data, one pass. The baseline, and the online methods."""

from __future__ import annotations

from typing import Literal

import torch

from vllm_quant_kernels.canonical import FP8_DTYPES, CanonicalWeight
from vllm_quant_kernels.scheme import E4M3, E5M2, PER_TENSOR, ValueType, WeightScheme

Fp8Kind = Literal["fp8_e4m3", "fp8_e5m2"]


def _grouped(weight: torch.Tensor, group_size: int) -> tuple[torch.Tensor, int]:
    """fp32 (N, G, group) view of (N, K) and the group length; K must be whole groups."""
    n, k = weight.shape
    group = group_size if group_size > 0 else k
    if k % group:
        raise ValueError(f"group_size {group} does not divide in_features {k}")
    return weight.float().reshape(n, k // group, group), group


def half_range(bits: int) -> float:
    """Steps between zero and the largest magnitude of a symmetric grid.

    To 4 bits half of the codes' range, as GPTQ and compressed-tensors have it (7.5 for 4 bits): all codes are used, the
    step is smaller, and the largest value lies half a step from its code. Above that the step hardly shrinks, and the
    largest value, exact with 2**(bits-1) - 1, is worth more; INT8 then has no -128 either.
    """
    return ((1 << bits) - 1) / 2 if bits <= 4 else (1 << (bits - 1)) - 1


def quantize_int(
    weight: torch.Tensor,
    bits: int,
    group_size: int = -1,
    *,
    symmetric: bool = True,
    scale_dtype: torch.dtype | None = None,
) -> CanonicalWeight:
    """Round to nearest integers.

    Symmetric: ``scale = amax / half_range(bits)``, codes offset by ``2**(bits-1)``. Asymmetric:
    ``scale = (max - min) / (2**bits - 1)`` with zero inside the range, zero point rounded.

    Args:
        weight: floating (N, K).
        group_size: input features per scale, -1 per output channel, 0 for the whole tensor.
        scale_dtype: dtype of the stored scales, rounded to before the codes are computed.

    Returns:
        Canonical weight; scales (N, G) in ``scale_dtype`` or float32.
    """
    values, group = _grouped(weight, group_size)
    top = (1 << bits) - 1
    zeros = None
    if symmetric:
        middle = 1 << (bits - 1)
        amax = values.abs().amax(dim=-1, keepdim=True)
        if group_size == PER_TENSOR:
            amax = amax.max().expand_as(amax)
        scales = amax / half_range(bits)
        offset: torch.Tensor | int = middle
    else:
        high = values.amax(dim=-1, keepdim=True).clamp(min=0)
        low = values.amin(dim=-1, keepdim=True).clamp(max=0)
        if group_size == PER_TENSOR:
            high, low = high.max().expand_as(high), low.min().expand_as(low)
        scales = (high - low) / top
    scales = torch.where(scales == 0, torch.ones_like(scales), scales)
    if scale_dtype is not None:
        tiny = torch.finfo(scale_dtype).tiny
        scales = scales.clamp(min=tiny).to(scale_dtype).float()
    if not symmetric:
        offset = (-low / scales).round().clamp(0, top)
        zeros = offset.squeeze(-1).to(torch.uint8)
    codes = ((values / scales).round() + offset).clamp(0, top).to(torch.uint8).reshape(weight.shape)
    scales = scales.squeeze(-1)
    return CanonicalWeight(codes, scales if scale_dtype is None else scales.to(scale_dtype), bits, group, zeros)


def quantize_fp8(
    weight: torch.Tensor, group_size: int = -1, *, block_n: int = 1, kind: Fp8Kind = "fp8_e4m3"
) -> CanonicalWeight:
    """Scale to the format's largest finite value and round to FP8.

    Args:
        weight: floating (N, K).
        group_size: input features per scale, -1 per output channel, 0 for the whole tensor. A
            last group may be short.
        block_n: output features that share a scale (128 with group_size 128 for block FP8).

    Returns:
        Canonical weight; float32 scales (N, G), equal within a block's rows.
    """
    dtype = FP8_DTYPES[kind]
    limit = torch.finfo(dtype).max
    n, k = weight.shape
    group = group_size if group_size > 0 else k
    groups = -(-k // group)
    padded = torch.nn.functional.pad(weight.float(), (0, groups * group - k))
    amax = padded.reshape(n, groups, group).abs().amax(dim=-1)
    if group_size == PER_TENSOR:
        amax = amax.max().expand_as(amax)
    elif block_n > 1:
        rows = torch.nn.functional.pad(amax, (0, 0, 0, -n % block_n)).reshape(-1, block_n, groups).amax(dim=1)
        amax = rows.repeat_interleave(block_n, dim=0)[:n]
    scales = torch.where(amax == 0, torch.ones_like(amax), amax / limit)
    scaled = weight.float() / scales.repeat_interleave(group, dim=1)[:, :k]
    codes = scaled.clamp(-limit, limit).to(dtype).view(torch.uint8)
    return CanonicalWeight(codes, scales.contiguous(), 8, group, kind=kind)


def quantize(weight: torch.Tensor, scheme: WeightScheme, scale_dtype: torch.dtype | None = None) -> CanonicalWeight:
    """Round one (N, K) weight to ``scheme``: integers or FP8.

    Args:
        scale_dtype: of integer scales; float32 where None. FP8 scales are float32.

    Raises:
        ValueError: the scheme has another value type.
    """
    if scheme.is_int:
        return quantize_int(weight, scheme.bits, scheme.group_size, symmetric=scheme.symmetric, scale_dtype=scale_dtype)
    kinds: dict[ValueType, Fp8Kind] = {E4M3: "fp8_e4m3", E5M2: "fp8_e5m2"}
    if scheme.value not in kinds:
        raise ValueError(f"{scheme.describe()} has no round-to-nearest")
    block_n = scheme.block[0] if scheme.block else 1
    return quantize_fp8(weight, scheme.group_size, block_n=block_n, kind=kinds[scheme.value])
