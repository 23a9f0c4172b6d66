"""Calls into ``libvqp_cpu.so``: pointers, shapes and error codes; no arithmetic.

The C side is declared in kernels/include/vqp_cpu.h.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vllm_quant_kernels import huge_pages, library

if TYPE_CHECKING:
    from vllm_quant_kernels.pack import PackedInt8, PackedWeight

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.uint8: 3}
ERRORS = {
    1: "the packed tensors are not in the layout of this version: pack the weight again",
    2: "a dtype is not supported",
    3: "out of memory",
    4: "perm is not a permutation of the input features",
}


def _pointer(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _raise(code: int) -> None:
    raise ValueError(ERRORS.get(code, f"native kernel failed with code {code}"))


def pack_planes(codes: torch.Tensor, bits: int, columns: torch.Tensor | None, kp: int) -> torch.Tensor:
    """Codes (N, K) uint8 to the bytes of the layout, 1-D, without a padded or permuted copy.

    Args:
        columns: None, or int32 (kp,): the source column of each packed one, -1 = padding.
    """
    n, k = codes.shape
    codes = codes.contiguous()
    out = huge_pages.empty_bytes(-(-n // 16) * 16 * kp * bits // 8)
    threads = torch.get_num_threads()
    code = library.load().vqp_pack(_pointer(codes), n, k, bits, _pointer(columns), kp, _pointer(out), threads)
    if code:
        _raise(code)
    return out


def weight_only(x: torch.Tensor, w: PackedWeight, bias: torch.Tensor | None, int8: bool) -> torch.Tensor:
    """See :func:`vllm_quant_kernels.ops.linear` and, with ``int8``, :func:`vllm_quant_kernels.ops.linear_a8`."""
    x = x.contiguous()
    out = torch.empty((*x.shape[:-1], w.n), dtype=x.dtype)
    if bias is not None:
        bias = bias.float().contiguous()
    lib = library.load()
    code = (lib.vqp_w4a8_linear if int8 else lib.vqp_wna16_linear)(
        _pointer(x),
        DTYPES[x.dtype],
        _pointer(out),
        out.numel() // w.n if w.n else 0,
        _pointer(w.data),
        w.data.numel(),
        _pointer(w.scales),
        DTYPES[w.scales.dtype],
        _pointer(w.zeros),
        0 if w.zeros is None else DTYPES[w.zeros.dtype],
        _pointer(w.perm),
        0 if w.perm is None else w.perm.numel(),
        _pointer(bias),
        w.kind,
        w.bits,
        w.group_size,
        w.scales.shape[1],
        w.n,
        w.k,
        torch.get_num_threads(),
    )
    if code:
        _raise(code)
    return out


def w8a8_linear(
    x: torch.Tensor,
    w: PackedInt8,
    bias: torch.Tensor | None,
    in_scale: torch.Tensor | None,
    in_zero: torch.Tensor | None,
    symmetric: bool,
) -> torch.Tensor:
    """See :func:`vllm_quant_kernels.ops.linear_int8`."""
    x = x.contiguous()
    out = torch.empty((*x.shape[:-1], w.n), dtype=x.dtype)
    if bias is not None:
        bias = bias.float().contiguous()
    if in_scale is not None:
        in_scale = in_scale.float().contiguous()
        in_zero = None if in_zero is None else in_zero.int().contiguous()
    code = library.load().vqp_w8a8_linear(
        _pointer(x),
        DTYPES[x.dtype],
        _pointer(out),
        out.numel() // w.n if w.n else 0,
        _pointer(w.data),
        w.data.numel(),
        _pointer(w.scales),
        _pointer(w.sums),
        _pointer(bias),
        _pointer(in_scale),
        None if in_scale is None else _pointer(in_zero),
        int(symmetric),
        w.n,
        w.k,
        torch.get_num_threads(),
    )
    if code:
        _raise(code)
    return out
