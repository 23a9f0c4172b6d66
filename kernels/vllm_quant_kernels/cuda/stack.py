"""Experts as one stack: packed weights brought to common tables, with a leading expert dimension.

Experts of one checkpoint may differ in what packing chose for them: whether there are zero points at all and of
which dtype, the dtype of the scales, whether columns are permuted, and, with act-order, how many columns padding
adds and how long a block of equal scales is. The grouped kernel reads one description for all.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from vllm_quant_kernels.cuda.layout import ROW_TILE, SLAB, bits_of, pack_codes, unpack_codes
from vllm_quant_kernels.cuda.pack import finish_writes
from vllm_quant_kernels.cuda.weight import PackedCuda
from vllm_quant_kernels.sizes import round_up


def stack_cuda(parts: list[PackedCuda]) -> PackedCuda:
    """The parts as one weight for ``vqp::wna16_experts_cuda``: every tensor gains a leading expert dimension.

    Values do not change: expert ``e`` of the result dequantizes to what ``parts[e]`` does.

    Raises:
        ValueError: there are no parts, or they differ in kind or size.
    """
    if not parts:
        raise ValueError("there are no experts to stack")
    first = parts[0]
    if any((p.kind, p.n, p.k) != (first.kind, first.n, first.k) for p in parts):
        raise ValueError("experts of one stack differ in bits or size")
    k_padded = max(p.k_padded for p in parts)
    grouped = [p.group_size for p in parts if p.scales.shape[0] and p.scales.shape[1] > 1]
    size = min(grouped) if grouped else k_padded
    blocks = -(-k_padded // size) if grouped else 1
    dtypes = {p.scales.dtype for p in parts}
    scale_dtype = first.scales.dtype if len(dtypes) == 1 else torch.float32
    zero_dtype = _zero_dtype(parts)
    permuted = any(p.perm is not None for p in parts)
    zeros = None if zero_dtype is None else torch.stack([_zeros(p, size, blocks, zero_dtype) for p in parts])
    stack = PackedCuda(
        data=torch.stack([_data(p, k_padded) for p in parts]),
        scales=torch.stack([_spread(p, p.scales, size, blocks).to(scale_dtype) for p in parts]),
        zeros=zeros,
        perm=torch.stack([_perm(p, k_padded) for p in parts]) if permuted else None,
        kind=first.kind,
        group_size=size,
        n=first.n,
        k=first.k,
    )
    finish_writes(stack.data)
    return stack


def split_rows(packed: PackedCuda, at: int) -> list[PackedCuda]:
    """Output features [0, at) and [at, N) as weights of their own."""
    if at % ROW_TILE == 0:
        tiles = at // ROW_TILE
        data = packed.data.view(packed.scales.shape[0], -1)
        halves = [data[:tiles].reshape(-1), data[tiles:].reshape(-1)]
        tables = [[None if t is None else t[rows] for t in (packed.scales, packed.zeros)]
                  for rows in (slice(0, tiles), slice(tiles, None))]  # fmt: skip
    else:
        bits = bits_of(packed.kind)
        codes = unpack_codes(packed.data, bits, packed.scales.shape[0] * ROW_TILE)[: packed.n]
        halves = [pack_codes(_pad_rows(part), bits) for part in (codes[:at], codes[at:])]
        tables = [[None if t is None else _rows(t, rows, packed.n) for t in (packed.scales, packed.zeros)]
                  for rows in (slice(0, at), slice(at, packed.n))]  # fmt: skip
    sizes = (at, packed.n - at)
    parts = []
    for data, (scales, zeros), n in zip(halves, tables, sizes, strict=True):
        assert scales is not None
        parts.append(replace(packed, data=data, scales=scales.contiguous(), zeros=zeros, n=n))
    return parts


def _pad_rows(rows: torch.Tensor) -> torch.Tensor:
    padded = rows.new_zeros(round_up(rows.shape[0], ROW_TILE), rows.shape[1])
    padded[: rows.shape[0]] = rows
    return padded


def _rows(table: torch.Tensor, rows: slice, n: int) -> torch.Tensor:
    """Rows of a table (tiles, G, 16), as such a table."""
    flat = table.transpose(1, 2).reshape(-1, table.shape[1])[:n][rows]
    return _pad_rows(flat).view(-1, ROW_TILE, table.shape[1]).transpose(1, 2).contiguous()


def _data(p: PackedCuda, k_padded: int) -> torch.Tensor:
    """The packed codes with slabs of zeros behind each row tile."""
    missing = (k_padded - p.k_padded) // SLAB
    if not missing:
        return p.data
    tiles, slab = p.scales.shape[0], 128 * bits_of(p.kind)
    wide = p.data.new_zeros(tiles, k_padded // SLAB * slab)
    wide[:, : p.k_padded // SLAB * slab] = p.data.view(tiles, -1)
    return wide.view(-1)


def _perm(p: PackedCuda, k_padded: int) -> torch.Tensor:
    perm = torch.full((k_padded,), -1, dtype=torch.int32, device=p.data.device)
    if p.perm is None:
        perm[: p.k] = torch.arange(p.k, dtype=torch.int32, device=p.data.device)
    else:
        perm[: p.k_padded] = p.perm
    return perm


def _spread(p: PackedCuda, table: torch.Tensor, size: int, blocks: int) -> torch.Tensor:
    """A table (tiles, G, 16) for blocks of ``size`` columns; zero for blocks past its own columns."""
    if table.shape[1] == 1:
        return table.expand(-1, blocks, -1).contiguous()
    wide = table.repeat_interleave(p.group_size // size, dim=1)[:, :blocks]
    return torch.nn.functional.pad(wide, (0, 0, 0, blocks - wide.shape[1]))


def _zero_dtype(parts: list[PackedCuda]) -> torch.dtype | None:
    found = {p.zeros.dtype for p in parts if p.zeros is not None}
    if not found:
        return None
    return torch.float32 if torch.float32 in found else torch.uint8


def _zeros(p: PackedCuda, size: int, blocks: int, dtype: torch.dtype) -> torch.Tensor:
    middle = 1 << (bits_of(p.kind) - 1)
    if p.zeros is None:
        value = middle if dtype == torch.uint8 else 0
        return torch.full((p.scales.shape[0], blocks, ROW_TILE), value, dtype=dtype, device=p.scales.device)
    wide = _spread(p, p.zeros, size, blocks)
    return wide if wide.dtype == dtype else wide.to(dtype) - middle
