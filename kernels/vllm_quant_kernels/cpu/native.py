"""Calls into ``libvqp_cpu.so``: pointers, shapes and error codes; no arithmetic.

The C side is declared in kernels/include/vqp_cpu.h.
"""

from __future__ import annotations

import torch

from vllm_quant_kernels import env
from vllm_quant_kernels.cpu import huge_pages, library
from vllm_quant_kernels.cpu.weight import PackedInt8, PackedWeight
from vllm_quant_kernels.native_call import DTYPES, pointer
from vllm_quant_kernels.shared_library import raise_error
from vllm_quant_kernels.sizes import round_up

ERRORS = {
    1: "the packed tensors are not in the layout of this version: pack the weight again",
    2: "a dtype is not supported",
    3: "out of memory",
    4: "perm is not a permutation of the input features",
}


def pack_planes(codes: torch.Tensor, bits: int, columns: torch.Tensor | None, kp: int) -> torch.Tensor:
    """Codes (N, K) uint8 to the bytes of the layout, 1-D, without a padded or permuted copy.

    Args:
        columns: None, or int32 (kp,): the source column of each packed one, -1 = padding.
    """
    n, k = codes.shape
    codes = codes.contiguous()
    out = huge_pages.empty_bytes(round_up(n, 16) * kp * bits // 8)
    threads = torch.get_num_threads()
    code = library.load().vqp_pack(pointer(codes), n, k, bits, pointer(columns), kp, pointer(out), threads)
    if code:
        raise_error(code, ERRORS)
    return out


def weight_only(x: torch.Tensor, w: PackedWeight, bias: torch.Tensor | None, int8: bool) -> torch.Tensor:
    """See :func:`.ops.linear` and, with ``int8``, :func:`.ops.linear_a8`."""
    if env.batch_invariant():
        rows = x.reshape(-1, x.shape[-1])
        missing = least_rows(x.dtype, int8) - rows.shape[0]
        if missing > 0 and rows.shape[0]:
            padded = torch.nn.functional.pad(rows, (0, 0, 0, missing))
            return _weight_only(padded, w, bias, int8)[: rows.shape[0]].view(*x.shape[:-1], w.n)
    return _weight_only(x, w, bias, int8)


def least_rows(dtype: torch.dtype, int8: bool) -> int:
    """From how many rows on the library's tiled kernels compute: fewer rows have kernels with sums of another order.

    Both are right; only with ``VLLM_BATCH_INVARIANT=1`` must a row not depend on how many there are.
    """
    level = library.level()
    if int8:
        return 9 if (level is not None and level.startswith("avx512")) or level == "amx" else 2
    return 17 if dtype == torch.bfloat16 and level in ("avx512_bf16", "amx") else 2


def _weight_only(x: torch.Tensor, w: PackedWeight, bias: torch.Tensor | None, int8: bool) -> torch.Tensor:
    x = x.contiguous()
    out = torch.empty((*x.shape[:-1], w.n), dtype=x.dtype)
    if bias is not None:
        bias = bias.float().contiguous()
    lib = library.load()
    code = (lib.vqp_w4a8_linear if int8 else lib.vqp_wna16_linear)(
        pointer(x),
        DTYPES[x.dtype],
        pointer(out),
        out.numel() // w.n if w.n else 0,
        pointer(w.data),
        w.data.numel(),
        pointer(w.scales),
        DTYPES[w.scales.dtype],
        pointer(w.zeros),
        0 if w.zeros is None else DTYPES[w.zeros.dtype],
        pointer(w.perm),
        0 if w.perm is None else w.perm.numel(),
        pointer(bias),
        w.kind,
        w.bits,
        w.group_size,
        w.scales.shape[1],
        w.n,
        w.k,
        torch.get_num_threads(),
    )
    if code:
        raise_error(code, ERRORS)
    return out


def w8a8_linear(
    x: torch.Tensor,
    w: PackedInt8,
    bias: torch.Tensor | None,
    in_scale: torch.Tensor | None,
    in_zero: torch.Tensor | None,
    symmetric: bool,
) -> torch.Tensor:
    """See :func:`vllm_quant_kernels.cpu.ops.linear_int8`."""
    x = x.contiguous()
    out = torch.empty((*x.shape[:-1], w.n), dtype=x.dtype)
    if bias is not None:
        bias = bias.float().contiguous()
    if in_scale is not None:
        in_scale = in_scale.float().contiguous()
        in_zero = None if in_zero is None else in_zero.int().contiguous()
    code = library.load().vqp_w8a8_linear(
        pointer(x),
        DTYPES[x.dtype],
        pointer(out),
        out.numel() // w.n if w.n else 0,
        pointer(w.data),
        w.data.numel(),
        pointer(w.scales),
        pointer(w.sums),
        pointer(bias),
        pointer(in_scale),
        None if in_scale is None else pointer(in_zero),
        int(symmetric),
        w.n,
        w.k,
        torch.get_num_threads(),
    )
    if code:
        raise_error(code, ERRORS)
    return out
