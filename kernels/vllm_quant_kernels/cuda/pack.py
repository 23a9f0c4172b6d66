"""From the canonical form to what the CUDA kernels read, and back.

The kernels know groups of 16 * 2**i columns, aligned, or one group a row. Everything else is put in
that form here: columns are sorted by group (``perm`` then tells the kernel where to gather each
activation), runs are padded to 16 columns, and the tables repeat a group that spans several blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vllm_quant_kernels.canonical import FP8_DTYPES, CanonicalWeight
from vllm_quant_kernels.cuda import native
from vllm_quant_kernels.cuda.layout import FP8, ROW_TILE, SLAB, bits_of, pack_codes, unpack_codes
from vllm_quant_kernels.cuda.weight import PackedCuda
from vllm_quant_kernels.sizes import round_up

SCALE_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def _power_of_two_divisor(values: list[int]) -> int:
    """The greatest power of two that divides all values (zero is divided by any)."""
    combined = 0
    for value in values:
        combined |= value
    return combined & -combined


@dataclass(frozen=True)
class _Columns:
    """Packed columns: ``perm`` as in PackedCuda, and the canonical group of each block of ``group_size`` columns."""

    perm: torch.Tensor | None
    padded: int
    group_size: int
    group_of_block: torch.Tensor  # int64 (G,), -1 for blocks of padding


def _columns(w: CanonicalWeight) -> _Columns:
    k, groups = w.in_features, w.scales.shape[1]
    if groups == 1:
        return _Columns(None, round_up(k, SLAB), round_up(k, SLAB), torch.zeros(1, dtype=torch.int64))
    index = w.group_index().cpu()
    in_order = w.group_size % ROW_TILE == 0 and torch.equal(index, torch.arange(k) // w.group_size)
    if in_order:
        size, padded, perm = _power_of_two_divisor([w.group_size]), round_up(k, SLAB), None
        first = torch.arange(0, k, size)
        owner = index[first]
    else:
        counts = torch.bincount(index, minlength=groups)
        runs = (counts + ROW_TILE - 1) // ROW_TILE * ROW_TILE
        ends = torch.cumsum(runs, 0)
        size = _power_of_two_divisor(ends[:-1].tolist()) or int(ends[-1])
        padded = round_up(int(ends[-1]), SLAB)
        order = torch.argsort(index, stable=True)
        rank = torch.arange(k) - (torch.cumsum(counts, 0) - counts)[index[order]]
        perm = torch.full((padded,), -1, dtype=torch.int32)
        perm[(ends - runs)[index[order]] + rank] = order.int()
        size = min(size, 1 << (padded - 1).bit_length())
        size = _power_of_two_divisor([size])
        first = torch.arange(0, int(ends[-1]), size)
        owner = torch.bucketize(first, ends, right=True)
    group_of_block = torch.full((-(-padded // size),), -1, dtype=torch.int64)
    group_of_block[: owner.numel()] = owner
    return _Columns(perm, padded, size, group_of_block)


def _table(values: torch.Tensor, columns: _Columns) -> torch.Tensor:
    """(N, groups) to (Np/16, G, 16); zero for padding rows and blocks."""
    source = columns.group_of_block.to(values.device)
    n = values.shape[0]
    wide = values.new_zeros(round_up(n, ROW_TILE), source.numel())
    wide[:n] = torch.where(source >= 0, values[:, source.clamp(min=0)], values.new_zeros(()))
    return wide.view(-1, ROW_TILE, source.numel()).transpose(1, 2).contiguous()


def _narrow_scales(scales: torch.Tensor) -> torch.Tensor:
    """16 bits wide where that is exact."""
    if scales.dtype in (torch.bfloat16, torch.float16):
        return scales
    wide = scales.float()
    for dtype in (torch.float16, torch.bfloat16):
        if torch.equal(wide.to(dtype).float(), wide):
            return wide.to(dtype)
    return wide


def _zero_table(zeros: torch.Tensor, bits: int) -> torch.Tensor | None:
    """uint8 where the kernels can fold the zero points into the codes, else fp32 minus the middle code."""
    wide, middle = zeros.float(), 1 << (bits - 1)
    if bool((wide == middle).all()):
        return None
    # BF16 holds 128 + zero exactly up to a zero of 128; 8-bit codes take another way.
    small = wide.clamp(0, 255 if bits == 8 else 128).to(torch.uint8)
    return small if torch.equal(small.float(), wide) else wide - middle


def pack_cuda(w: CanonicalWeight) -> PackedCuda:
    """Pack a canonical weight for the CUDA kernels, on the device that it is on.

    Raises:
        ValueError: the weight is malformed, is FP8 E5M2, or its FP8 codes or scales hold NaN or infinity.
    """
    w.validate()
    if w.kind == "fp8_e5m2" or not w.is_plain:
        raise ValueError(f"the CUDA kernels read integers and FP8 E4M3 with one level of scales, not {w.kind}")
    if not torch.isfinite(w.scales).all():
        raise ValueError("scales hold NaN or infinity")
    if w.kind != "int" and not torch.isfinite(w.codes.view(FP8_DTYPES[w.kind]).float()).all():
        raise ValueError(f"{w.kind} codes hold NaN or infinity")
    kind = w.bits if w.kind == "int" else FP8
    n, k = w.codes.shape
    columns = _columns(w)
    zeros = None if w.zeros is None else _zero_table(w.zeros, w.bits)
    perm = None if columns.perm is None else columns.perm.to(w.codes.device)
    packed = PackedCuda(
        data=_pack_data(w.codes, kind, columns.padded, perm),
        scales=_table(_narrow_scales(w.scales), columns),
        zeros=None if zeros is None else _table(zeros, columns),
        perm=perm,
        kind=kind,
        group_size=columns.group_size,
        n=n,
        k=k,
    )
    finish_writes(packed.data)
    return packed


def finish_writes(tensor: torch.Tensor) -> None:
    """Wait until the GPU has written packed tensors: a dependent launch may read them ahead of stream order."""
    if tensor.is_cuda:
        torch.cuda.current_stream(tensor.device).synchronize()


def _pack_data(codes: torch.Tensor, kind: int, k_padded: int, perm: torch.Tensor | None) -> torch.Tensor:
    """The packed codes: by the device's kernel where there is one, else in PyTorch. Both give the same bytes."""
    if codes.is_cuda:
        return native.pack(codes.contiguous(), kind, k_padded, perm)
    n, k = codes.shape
    padded = torch.zeros(round_up(n, ROW_TILE), k_padded, dtype=torch.uint8)
    if perm is None:
        padded[:n, :k] = codes
    else:
        filled = (perm >= 0).nonzero().flatten()
        padded[:n, filled] = codes[:, perm[filled].long()]
    return pack_codes(padded, bits_of(kind))


def dequantize_cuda(p: PackedCuda, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The (N, K) weight in ``dtype``, computed in float64 when that is asked for, else in float32."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    bits = bits_of(p.kind)
    codes = unpack_codes(p.data, bits, round_up(p.n, ROW_TILE))[: p.n]
    block = torch.arange(p.k_padded, device=codes.device)
    block = block // p.group_size if p.scales.shape[1] > 1 else torch.zeros_like(block)

    def spread(table: torch.Tensor) -> torch.Tensor:
        return table.transpose(1, 2).reshape(-1, table.shape[1])[: p.n].to(wide)[:, block]

    if p.kind == FP8:
        values = codes.view(torch.float8_e4m3fn).to(wide)
    else:
        middle = 1 << (bits - 1)
        values = codes.to(wide)
        if p.zeros is None:
            values = values - middle
        elif p.zeros.dtype == torch.uint8:
            values = values - spread(p.zeros)
        else:
            values = values - middle - spread(p.zeros)
    values = values * spread(p.scales)
    if p.perm is None:
        return values[:, : p.k].to(dtype)
    filled = (p.perm >= 0).nonzero().flatten()
    out = values.new_empty(p.n, p.k)
    out[:, p.perm[filled].long()] = values[:, filled]
    return out.to(dtype)
