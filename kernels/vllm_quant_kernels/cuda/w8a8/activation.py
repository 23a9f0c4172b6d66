"""8-bit activations as the CUDA kernels make them: the same formulas in PyTorch, bit for bit.

Codes are those of vLLM's kernels (csrc/quantization/w8a8), in float32, rounding half to even:

    INT8  dynamic, symmetric    scale = absmax / 127               q = int8(x * (127 / absmax)); 0 where absmax is 0
          dynamic, asymmetric   scale = (high - low) / 255         q = int8(round(x * (1 / scale)) + zero)
                                zero = round(-128 - low / scale)
          static                q = int8(x / scale); with a zero point  int8(round(x * (1 / scale)) + zero)
    FP8   dynamic, a token      scale = max(absmax / 448, 1 / (448 * 512))          q = e4m3(x / scale)
          static                q = e4m3(x * (1 / scale))
          groups of 128         scale = max(absmax, 1e-10) / 448                    q = e4m3(x / scale)

NaN takes no part in a range; its INT8 code is that of 0 (before the zero point), its FP8 code 448, in groups
-448: as vLLM. The asymmetric range holds 0, as compressed-tensors has it and vLLM has not: a constant row would
get scale 0. reference.quantize_activation, which the CPU kernels follow, divides by the scale where this
multiplies by its inverse: codes differ by one where a value lies at the middle of two.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vllm_quant_kernels.canonical import E4M3_MAX
from vllm_quant_kernels.sizes import round_up

INT8, FP8 = 8, 9
KINDS = {"int": INT8, "fp8_e4m3": FP8}
DTYPES = {INT8: torch.int8, FP8: torch.float8_e4m3fn}
GROUP = 128
_FAR = 4096


@dataclass(frozen=True)
class Activations:
    """Quantized rows: x[m, k] ~ (q[m, k] - zeros[m]) * scale of row m (and group k // 128).

    Attributes:
        q: int8 or float8_e4m3fn (M, Kp), Kp = K rounded up to 16; padding is zero.
        scales: float32 (M,); (G, Mp) for groups, Mp = M rounded up to 4 (DeepGEMM's layout), padding
            undefined; the static scale, (1,).
        zeros: int32 (M,), the static zero point (1,), or None.
    """

    q: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None


def _pad(codes: torch.Tensor) -> torch.Tensor:
    bytes_ = codes.view(torch.uint8)
    padded = torch.nn.functional.pad(bytes_, (0, round_up(codes.shape[1], 16) - codes.shape[1]))
    return padded.view(codes.dtype)


def _int8(scaled: torch.Tensor, zero: torch.Tensor | int = 0) -> torch.Tensor:
    whole = torch.round(scaled).nan_to_num(0.0, _FAR, -_FAR).clamp(-_FAR, _FAR)
    return _pad((whole + zero).clamp(-128, 127).to(torch.int8))


def _fp8(scaled: torch.Tensor, nan: float = E4M3_MAX) -> torch.Tensor:
    return _pad(scaled.nan_to_num(nan, E4M3_MAX, -E4M3_MAX).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn))


def _absmax(x: torch.Tensor) -> torch.Tensor:
    """Of the last dimension, kept; NaN left out."""
    return torch.where(x.isnan(), 0.0, x.abs()).amax(dim=-1, keepdim=True)


def check(kind: int, symmetric: bool, in_scale: torch.Tensor | None, in_zero: torch.Tensor | None, group: int) -> None:
    """Refuse combinations that no kernel has. Raises ValueError."""
    if kind not in DTYPES:
        raise ValueError(f"kind must be 8 (INT8) or 9 (FP8 E4M3), got {kind}")
    if kind == FP8 and (not symmetric or in_zero is not None):
        raise ValueError("FP8 activations have no zero points")
    if group and (group != GROUP or kind != FP8 or in_scale is not None):
        raise ValueError("groups are of 128 columns, FP8 and dynamic")
    if in_zero is not None and in_scale is None:
        raise ValueError("a static zero point needs a static scale")


def quantize(
    x: torch.Tensor,
    kind: int,
    symmetric: bool = True,
    in_scale: torch.Tensor | None = None,
    in_zero: torch.Tensor | None = None,
    group: int = 0,
) -> Activations:
    """The codes and scales of x.

    Args:
        x: (M, K) bf16 or fp16.
        kind: ``INT8`` or ``FP8``.
        symmetric: of the dynamic INT8 scheme.
        in_scale: None: dynamic. Else the static scale, one element.
        in_zero: the static zero point, one element, INT8 only.
        group: 0: one scale a row; 128: one a row and 128 columns, FP8 only.

    Raises:
        ValueError: a combination that no kernel has.
    """
    check(kind, symmetric, in_scale, in_zero, group)
    wide = x.float()
    one = torch.ones((), device=x.device)
    if group:
        return _quantize_groups(wide)
    if in_scale is not None:
        scale = in_scale.float().reshape(1)
        if kind == FP8:
            return Activations(_fp8(wide * (one / scale)), scale, None)
        if in_zero is None:
            return Activations(_int8(wide / scale), scale, None)
        zero = in_zero.to(torch.int32).reshape(1)
        return Activations(_int8(wide * (one / scale), zero), scale, zero)
    if kind == FP8:
        scale = (_absmax(wide) / E4M3_MAX).clamp(min=float(one.cpu() / (E4M3_MAX * 512)))
        return Activations(_fp8(wide / scale), scale.flatten(), None)
    if symmetric:
        absmax = _absmax(wide)
        factor = torch.where(absmax == 0, 0.0, 127.0 * one / absmax)
        return Activations(_int8(wide * factor), (absmax / 127).flatten(), None)
    finite = torch.where(wide.isnan(), 0.0, wide)
    low = finite.amin(dim=1, keepdim=True).clamp(max=0)
    scale = (finite.amax(dim=1, keepdim=True).clamp(min=0) - low) / 255
    zero = torch.round(-128 - low / scale).nan_to_num(0.0).clamp(-128, 127)
    zero = torch.where(scale == 0, 0.0, zero)
    factor = torch.where(scale == 0, 0.0, one / scale)
    return Activations(_int8(wide * factor, zero), scale.flatten(), zero.flatten().to(torch.int32))


def _quantize_groups(wide: torch.Tensor) -> Activations:
    rows, columns = wide.shape
    groups = -(-columns // GROUP)
    blocks = torch.nn.functional.pad(wide, (0, groups * GROUP - columns)).view(rows, groups, GROUP)
    scale = _absmax(blocks).clamp(min=1e-10) / E4M3_MAX
    codes = _fp8((blocks / scale).view(rows, -1)[:, :columns], nan=-E4M3_MAX)
    scales = torch.nn.functional.pad(scale[..., 0].T, (0, round_up(rows, 4) - rows)).contiguous()
    return Activations(codes, scales, None)


def dequantize(a: Activations, k: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """(M, K) in ``dtype``: what the codes stand for."""
    values = a.q[:, :k].to(dtype)
    if a.zeros is not None:
        values = values - a.zeros.to(dtype).view(-1, 1)
    scales = a.scales.to(dtype)
    if scales.ndim == 1:
        return values * scales.view(-1, 1)
    per_column = scales[:, : values.shape[0]].T.repeat_interleave(GROUP, dim=1)[:, :k]
    return values * per_column
