"""The packed layout of the CUDA kernels, in PyTorch: A fragments of ``mma.m16n8k16`` in bit planes.

    data  [N/16 row tiles][K/64 slabs][planes]     128 * bits bytes a slab
    lane l of a warp holds, of each k16 step s of a slab, the 8 codes of its A fragment:
        register r, half h:  row l // 4 + 8 * (r % 2),  column 16 s + 2 * (l % 4) + h + 8 * (r // 2)
    plane of width p: p words a lane; half h of register r of step s sits at 16 * h plus
        width 8: word 2s + r // 2, bit 8 * (r % 2)      4: word s, bit 4r
              2: word s // 2, bit 4r + 2 * (s % 2)      1: word 0, bit 4r + s

This file says the same as kernels/cuda/layout.h, independently: tests hold them against each other.
"""

from __future__ import annotations

import functools

import torch

LAYOUT_VERSION = 1
ROW_TILE = 16
SLAB = 64
FP8 = 9
PLANES: dict[int, tuple[int, ...]] = {2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}
_CHUNK = 1 << 22  # codes packed at a time: bounds the memory of the intermediate words


def bits_of(kind: int) -> int:
    """Bits of a code of weight ``kind`` (2..8, or ``FP8``)."""
    return 8 if kind == FP8 else kind


@functools.cache
def _fragment(device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """int64 (32, 4, 4, 2): row and column in a slab of [lane][step][register][half]."""
    lane, step, reg, half = (
        torch.arange(size, device=device).view([-1 if i == j else 1 for j in range(4)])
        for i, size in enumerate((32, 4, 4, 2))
    )
    row = lane // 4 + 8 * (reg % 2) + 0 * (step + half)
    column = 16 * step + 2 * (lane % 4) + half + 8 * (reg // 2)
    return row, column.expand_as(row)


@functools.cache
def _places(width: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """int64 (4, 4) word and int32 (4, 4, 2) bit of [step][register][half] in a plane."""
    step, reg = torch.arange(4, device=device)[:, None], torch.arange(4, device=device)[None]
    word, bit = {
        8: (2 * step + reg // 2, 8 * (reg % 2) + 0 * step),
        4: (step + 0 * reg, 4 * reg + 0 * step),
        2: (step // 2 + 0 * reg, 4 * reg + 2 * (step % 2)),
        1: (0 * step + 0 * reg, 4 * reg + step),
    }[width]
    return word, torch.stack((bit, bit + 16), dim=-1).int()


def pack_codes(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes uint8 (Np, Kp), Np a multiple of 16 and Kp of 64, to the bytes of the layout, 1-D."""
    tiles, columns = codes.shape[0] // ROW_TILE, codes.shape[1]
    step = max(1, _CHUNK // (ROW_TILE * columns)) if columns else 1
    parts = [_pack_tiles(codes[ROW_TILE * t : ROW_TILE * (t + step)], bits) for t in range(0, tiles, step)]
    return torch.cat(parts) if parts else codes.new_empty(0)


def _pack_tiles(codes: torch.Tensor, bits: int) -> torch.Tensor:
    device, tiles, slabs = str(codes.device), codes.shape[0] // ROW_TILE, codes.shape[1] // SLAB
    row, column = _fragment(device)
    fragments = codes.view(tiles, ROW_TILE, slabs, SLAB).transpose(1, 2)[:, :, row, column].int()
    planes, base = [], 0
    for width in PLANES[bits]:
        word, bit = _places(width, device)
        fields = (fragments >> base & ((1 << width) - 1)) << bit
        words = torch.zeros(tiles, slabs, 32, width, dtype=torch.int32, device=codes.device)
        words.index_add_(3, word.flatten(), fields.sum(-1, dtype=torch.int32).flatten(3))
        if width == 8:
            words = words.view(tiles, slabs, 32, 2, 4).transpose(2, 3)
        planes.append(words.reshape(tiles, slabs, 32 * width))
        base += width
    return torch.cat(planes, dim=2).view(torch.uint8).flatten()


def unpack_codes(data: torch.Tensor, bits: int, rows: int) -> torch.Tensor:
    """The inverse of :func:`pack_codes`: uint8 (rows, Kp), ``rows`` a multiple of 16."""
    device, tiles = str(data.device), rows // ROW_TILE
    slabs = data.numel() // (tiles * 128 * bits) if tiles else 0
    words = data.view(torch.int32).view(tiles, slabs, 32 * bits)
    fragments = torch.zeros(tiles, slabs, 32, 4, 4, 2, dtype=torch.int32, device=data.device)
    base = 0
    for width in PLANES[bits]:
        plane = words[..., 32 * base : 32 * (base + width)]
        if width == 8:
            plane = plane.reshape(tiles, slabs, 2, 32, 4).transpose(2, 3)
        word, bit = _places(width, device)
        fields = plane.reshape(tiles, slabs, 32, width)[..., word]
        fragments |= (fields[..., None] >> bit & ((1 << width) - 1)) << base
        base += width
    row, column = _fragment(device)
    codes = torch.zeros(tiles, slabs, ROW_TILE, SLAB, dtype=torch.uint8, device=data.device)
    codes[:, :, row, column] = fragments.to(torch.uint8)
    return codes.transpose(1, 2).reshape(rows, slabs * SLAB)
