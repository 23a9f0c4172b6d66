"""Calls into ``libvqp_cuda.so``: tensors to pointers, outputs and workspaces from PyTorch's allocator."""

from __future__ import annotations

import ctypes
import functools

import torch

from vllm_quant_kernels.cuda import library
from vllm_quant_kernels.cuda.layout import ROW_TILE, SLAB, bits_of
from vllm_quant_kernels.cuda.library import NO_DTYPE, Linear, Plan
from vllm_quant_kernels.cuda.weight import PackedCuda
from vllm_quant_kernels.native_call import DTYPES, pointer

MAX_WORKSPACE = 256 << 20


def _dtype(tensor: torch.Tensor | None) -> int:
    return NO_DTYPE if tensor is None else DTYPES[tensor.dtype]


def describe(
    x: torch.Tensor,
    out: torch.Tensor,
    w: PackedCuda,
    bias: torch.Tensor | None,
    batch_invariant: bool,
) -> Linear:
    """The call y = x W^T + bias for x (M, K) with unit column stride and out (M, N) contiguous."""
    return Linear(
        x=pointer(x),
        y=pointer(out),
        data=pointer(w.data),
        scales=pointer(w.scales),
        zeros=pointer(w.zeros),
        perm=pointer(w.perm),
        bias=pointer(bias),
        m=x.shape[0],
        n=w.n,
        k=w.k,
        k_padded=w.k_padded,
        x_stride=x.stride(0) if x.shape[0] > 1 else w.k,
        groups=w.scales.shape[-2],
        group_size=w.group_size,
        kind=w.kind,
        x_dtype=_dtype(x),
        scale_dtype=_dtype(w.scales),
        zero_dtype=_dtype(w.zeros),
        bias_dtype=_dtype(bias),
        batch_invariant=int(batch_invariant),
        dependent=int(library.dependent_launch()),
    )


def describe_experts(
    x: torch.Tensor,
    out: torch.Tensor,
    w: PackedCuda,
    bias: torch.Tensor | None,
    rows: torch.Tensor,
    experts: torch.Tensor,
    padded_rows: torch.Tensor,
    row_scales: torch.Tensor | None,
    top_k: int,
    batch_invariant: bool,
) -> Linear:
    """The grouped call: ``w`` with a leading expert dimension, ``out`` (pairs, N) contiguous."""
    call = describe(x, out, w, bias, batch_invariant)
    call.m, call.top_k, call.sorted_rows = out.shape[0], top_k, rows.numel()
    call.rows, call.experts, call.padded_rows = pointer(rows), pointer(experts), pointer(padded_rows)
    call.row_scales, call.num_experts = pointer(row_scales), w.data.shape[0]
    return call


def plan(call: Linear, tokens: int = 0) -> Plan:
    """How ``call`` would run on the current device."""
    result = Plan()
    library.check(library.load().vqp_cuda_linear_plan(ctypes.byref(call), tokens, ctypes.byref(result)))
    return result


@functools.cache
def has_warpgroups(device: torch.device) -> bool:
    """Whether tiles of 128 rows run there: a Hopper GPU, and code for sm_90a in the library."""
    if device.type != "cuda":
        return False
    f16 = DTYPES[torch.float16]
    call = Linear(m=128, n=128, k=128, k_padded=128, groups=1, group_size=128, kind=4, x_dtype=f16, scale_dtype=f16)
    call.zero_dtype = call.bias_dtype = NO_DTYPE
    with torch.cuda.device(device):
        try:
            plan(call, 128)
        except ValueError:
            return False
    return True


def run(call: Linear, chosen: Plan, device: torch.device) -> None:
    """Enqueue a planned call on the current stream."""
    size = chosen.workspace_bytes
    workspace = torch.empty(size, dtype=torch.uint8, device=device) if size else None
    stream = torch.cuda.current_stream(device).cuda_stream
    library.check(
        library.load().vqp_cuda_linear_run(ctypes.byref(call), ctypes.byref(chosen), pointer(workspace), size, stream)
    )


def wna16_linear(x: torch.Tensor, w: PackedCuda, bias: torch.Tensor | None, batch_invariant: bool) -> torch.Tensor:
    """See :func:`vllm_quant_kernels.cuda.ops.linear_cuda`."""
    rows = x.reshape(-1, w.k)
    if rows.stride(-1) != 1 and rows.numel():
        rows = rows.contiguous()
    out = torch.empty((*x.shape[:-1], w.n), dtype=x.dtype, device=x.device)
    if out.numel():
        bias = None if bias is None else bias.contiguous()
        flat = out.view(-1, w.n)
        with torch.cuda.device(x.device):
            call = describe(rows, flat, w, bias, batch_invariant)
            whole = plan(call)
            if whole.workspace_bytes <= MAX_WORKSPACE:
                run(call, whole, x.device)
                return out
            for part in row_chunks(rows.shape[0], whole.workspace_bytes):
                call = describe(rows[part], flat[part], w, bias, batch_invariant)
                run(call, plan(call), x.device)
    return out


def row_chunks(m: int, workspace_bytes: int) -> list[slice]:
    """Rows to run at a time, so that a workspace stays within ``MAX_WORKSPACE``.

    Only batch-invariant calls come near it: they keep the splits of a single row at any M, and their rows
    do not depend on each other.
    """
    parts = -(-workspace_bytes // MAX_WORKSPACE)
    if parts <= 1:
        return [slice(0, m)]
    step = max(64, m // parts // 64 * 64)
    return [slice(start, min(start + step, m)) for start in range(0, m, step)]


def wna16_experts(
    x: torch.Tensor,
    w: PackedCuda,
    bias: torch.Tensor | None,
    rows: torch.Tensor,
    experts: torch.Tensor,
    padded_rows: torch.Tensor,
    row_scales: torch.Tensor | None,
    tokens: int,
    top_k: int,
    pairs: int,
    batch_invariant: bool,
) -> torch.Tensor:
    """See :func:`vllm_quant_kernels.cuda.ops.experts_cuda`."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    out = torch.empty((pairs, w.n), dtype=x.dtype, device=x.device)
    if not out.numel():
        return out
    with torch.cuda.device(x.device):
        bias = None if bias is None else bias.contiguous()
        call = describe_experts(x, out, w, bias, rows, experts, padded_rows, row_scales, top_k, batch_invariant)
        run(call, plan(call, tokens), x.device)
    return out


def pack(codes: torch.Tensor, kind: int, k_padded: int, perm: torch.Tensor | None) -> torch.Tensor:
    """Codes (N, K) uint8 on a GPU to the packed bytes of :mod:`vllm_quant_kernels.cuda.layout`."""
    n, k = codes.shape
    tiles = -(-n // ROW_TILE) * (k_padded // SLAB)
    data = torch.empty(tiles * 128 * bits_of(kind), dtype=torch.uint8, device=codes.device)
    if data.numel():
        with torch.cuda.device(codes.device):
            stream = torch.cuda.current_stream(codes.device).cuda_stream
            library.check(
                library.load().vqp_cuda_pack(pointer(codes), n, k, k_padded, pointer(perm), kind, pointer(data), stream)
            )
    return data
