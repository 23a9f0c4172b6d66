"""What the kernels compute, in plain PyTorch: the oracle of the tests, and the path without a native library."""

from __future__ import annotations

import torch

from vllm_quant_kernels.canonical import CanonicalWeight
from vllm_quant_kernels.cpu.layout import column_order, padded_columns, segments


def wna16_linear(
    x: torch.Tensor, w: CanonicalWeight, bias: torch.Tensor | None = None, wide: torch.dtype = torch.float64
) -> torch.Tensor:
    """x (..., K) times the dequantized weight, in ``wide`` (float64 by default): (..., N)."""
    out = x.to(wide) @ w.dequantize(torch.float64 if wide == torch.float64 else torch.float32).to(wide).T
    return out if bias is None else out + bias.to(wide)


def quantize_activation(
    x: torch.Tensor,
    symmetric: bool = True,
    in_scale: torch.Tensor | None = None,
    in_zero: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """INT8 activations, in float32 arithmetic, rounding half to even.

        dynamic symmetric    scale = max|x| / 127                         zero = 0
        dynamic asymmetric   scale = (max(x, 0) - min(x, 0)) / 255        zero = clamp(round(-128 - min / scale))
        static               scale = in_scale                             zero = in_zero or 0
        q = clamp(round(x / scale) + zero, -128, 127)

    A token of all zeros has scale 1. Values follow compressed-tensors' per-token schemes.

    Args:
        x: (M, K) floating.

    Returns:
        q int8 (M, K), scale fp32 (M, 1), zero int32 (M, 1): x ~ (q - zero) * scale.
    """
    wide = x.float()
    if in_scale is not None:
        scale = in_scale.float().reshape(1, 1).expand(x.shape[0], 1)
        zero = torch.zeros_like(scale) if in_zero is None else in_zero.float().reshape(1, 1).expand_as(scale)
    elif symmetric:
        scale = wide.abs().amax(dim=1, keepdim=True) / 127
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        zero = torch.zeros_like(scale)
    else:
        low = wide.amin(dim=1, keepdim=True).clamp(max=0)
        scale = (wide.amax(dim=1, keepdim=True).clamp(min=0) - low) / 255
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        zero = torch.round(-128 - low / scale).clamp(-128, 127)
    q = (torch.round(wide / scale) + zero).clamp(-128, 127)
    return q.to(torch.int8), scale.contiguous(), zero.to(torch.int32)


def quantize_segments(x: torch.Tensor, w: CanonicalWeight) -> tuple[torch.Tensor, torch.Tensor]:
    """INT8 activations as ``vqp::w4a8_linear`` makes them, in float32 arithmetic, rounding half to even.

    Input features are taken in the packed order (sorted by group); a segment is a run of at most 128 of one
    group, cut at multiples of 128. In each segment of each token scale = max|x| / 127 (1 where that is 0) and
    q = round(x / scale).

    Args:
        x: (M, K) floating.

    Returns:
        q int8 (M, K) and its scale fp32 (M, K): x ~ q * scale.
    """
    k, groups = w.in_features, w.scales.shape[1]
    perm = column_order(groups, w.group_size, k, w.g_idx)
    source = torch.arange(k) if perm is None else perm[: padded_columns(k, perm, groups)].long()
    q, scales = torch.zeros(x.shape, dtype=torch.int8), torch.ones(x.shape)
    for start, stop, _ in segments(k, w.group_size, groups, perm):
        columns = source[start:stop]
        columns = columns[columns >= 0]
        if columns.numel():
            part = x[:, columns].float()
            scale = part.abs().amax(dim=1, keepdim=True) / 127
            scale = torch.where(scale > 0, scale, torch.ones_like(scale))
            q[:, columns] = torch.round(part / scale).clamp(-127, 127).to(torch.int8)
            scales[:, columns] = scale.expand_as(part)
    return q, scales


def w4a8_linear(
    x: torch.Tensor, w: CanonicalWeight, bias: torch.Tensor | None = None, wide: torch.dtype = torch.float64
) -> torch.Tensor:
    """Activations quantized by :func:`quantize_segments` times the dequantized weight, in ``wide``: (..., N)."""
    q, scale = quantize_segments(x.reshape(-1, x.shape[-1]), w)
    return wna16_linear((q.to(wide) * scale.to(wide)).view(x.shape), w, bias, wide)


def w8a8_linear(
    x: torch.Tensor,
    codes: torch.Tensor,
    w_scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    in_scale: torch.Tensor | None = None,
    in_zero: torch.Tensor | None = None,
    symmetric: bool = True,
) -> torch.Tensor:
    """Quantized activations times int8 weights, exact integers inside: (..., N) float32.

    Args:
        x: (..., K) floating.
        codes: int8 (N, K).
        w_scale: (N,), one scale per output channel.
    """
    rows = x.reshape(-1, x.shape[-1])
    q, scale, zero = quantize_activation(rows, symmetric, in_scale, in_zero)
    # float64 holds every sum below 2**53 exactly, and multiplies faster than integers on a CPU.
    total = (q.double() - zero.double()) @ codes.double().T
    out = total.float() * (scale * w_scale.float().flatten())
    if bias is not None:
        out = out + bias.float()
    return out.view(*x.shape[:-1], codes.shape[0])
