"""The packed layout of weight-only matrices: N-interleaved bit planes.

Sixteen output channels form a panel, so one 32-bit vector lane owns one channel and no
horizontal sum is ever needed. Along K a panel is cut into blocks of 32 input features:

    data   [N/16 panels][K/32 blocks][planes of one block]                 uint8
    block  bits = 2: [2]  3: [3]  4: [4]  5: [4,1]  6: [4,2]  7: [4,2,1]  8: [8]   (low bits first)

    plane of width p = p vectors of 16 lanes x 32 bits (64 bytes each)

               lane 0 (channel 0)            ...  lane 15
             +-------------+-------------+
    vector v | word h=1    | word h=0    |        word = 16 bits, little endian
             +-------------+-------------+
               field t of word h, bits [p*t, p*t + p):  k = v * (32/p) + 2*t + h

Words h = 0 and 1 of a lane hold neighbouring k, so the same shift of a vector yields 16 pairs
(k, k+1), the operand shape of bf16 dot products. Two planes deviate for that pair j = k // 2:

    width 1   pair j at bit (j % 8) * 2 + j // 8, so that the bits which complete fields t of both
              vectors of a 2-bit plane lie side by side under one shift
    width 3   five codes per word: pair j < 15 in vector j // 5 at bit 3 * (j % 5); pair 15 in bit 15
              of the three vectors, low bit first

    scales [N/16][G][16]  bf16, fp16 or fp32       zeros  [N/16][G][16]  uint8 or fp32

Columns are sorted by group; each group's run is padded to a multiple of 16 columns and the whole
to a multiple of 32. ``perm`` (int32, Kp + G + 1) is None where that changes nothing but the tail:
its first Kp entries are source columns (-1 = padding), the rest the first column of each run.
"""

from __future__ import annotations

from itertools import pairwise

import torch

from vllm_quant_kernels.sizes import round_up

LAYOUT_VERSION = 1
KIND_CODES = {"int": 0, "fp8_e4m3": 1, "fp8_e5m2": 2}
LANES = 16
BLOCK = 32
CHUNK = 128
PLANES: dict[int, tuple[int, ...]] = {2: (2,), 3: (3,), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}


def kind_code(kind: str) -> int:
    """The ``kind`` integer of the ops: layout version in the high byte, so that an old layout is refused."""
    return LAYOUT_VERSION << 8 | KIND_CODES[kind]


def kind_name(code: int) -> str:
    """The inverse of :func:`kind_code`. Raises ValueError for another layout version."""
    if code >> 8 != LAYOUT_VERSION:
        raise ValueError(f"packed layout version {code >> 8} is not {LAYOUT_VERSION}: pack the weight again")
    for name, value in KIND_CODES.items():
        if value == code & 0xFF:
            return name
    raise ValueError(f"unknown weight kind {code & 0xFF}")


def _places(width: int, pair: int) -> list[tuple[int, int, int, int]]:
    """Where a pair's field of ``width`` bits lives: (vector, bit of the word, bits taken, bit of the field)."""
    if width == 1:
        return [(0, pair % 8 * 2 + pair // 8, 1, 0)]
    if width == 3 and pair == 15:
        return [(vector, 15, 1, vector) for vector in range(3)]
    per_word = 16 // width
    return [(pair // per_word, width * (pair % per_word), width, 0)]


def pack_planes(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes (Np, Kp) uint8, Np a multiple of 16 and Kp of 32, to the bytes of the layout, 1-D."""
    panels, blocks = codes.shape[0] // LANES, codes.shape[1] // BLOCK
    parts, offset = [], 0
    pairs = codes.view(panels, LANES, blocks, BLOCK // 2, 2)
    for width in PLANES[bits]:
        word = torch.zeros(panels, blocks, width, LANES, 2, dtype=torch.int32)
        for pair in range(BLOCK // 2):
            field = (pairs[..., pair, :].transpose(1, 2).int() >> offset) & ((1 << width) - 1)
            for vector, bit, taken, low in _places(width, pair):
                word[:, :, vector] |= (field >> low & ((1 << taken) - 1)) << bit
        parts.append(torch.stack((word & 0xFF, word >> 8), dim=-1).to(torch.uint8).view(panels, blocks, 64 * width))
        offset += width
    return torch.cat(parts, dim=2).reshape(-1)


def unpack_planes(data: torch.Tensor, bits: int, rows: int) -> torch.Tensor:
    """The inverse of :func:`pack_planes`: uint8 codes (rows, Kp)."""
    panels = rows // LANES
    blocks = data.numel() // (panels * 64 * bits) if panels else 0
    planes = data.view(panels, blocks, 64 * bits)
    pairs = torch.zeros(panels, LANES, blocks, BLOCK // 2, 2, dtype=torch.uint8)
    start, offset = 0, 0
    for width in PLANES[bits]:
        pair_of_bytes = planes[..., start : start + 64 * width].reshape(panels, blocks, width, LANES, 2, 2).int()
        word = pair_of_bytes[..., 0] | pair_of_bytes[..., 1] << 8
        for pair in range(BLOCK // 2):
            for vector, bit, taken, low in _places(width, pair):
                field = word[:, :, vector] >> bit & ((1 << taken) - 1)
                pairs[..., pair, :] |= (field << (low + offset)).to(torch.uint8).transpose(1, 2)
        start += 64 * width
        offset += width
    return pairs.view(rows, blocks * BLOCK)


def interleave_rows(table: torch.Tensor, rows: int) -> torch.Tensor:
    """(N, G) to (Np/16, G, 16), contiguous; the padding rows are zero."""
    padded = table.new_zeros(rows, table.shape[1])
    padded[: table.shape[0]] = table
    return padded.view(rows // LANES, LANES, -1).transpose(1, 2).contiguous()


def deinterleave_rows(table: torch.Tensor, n: int) -> torch.Tensor:
    """The inverse of :func:`interleave_rows`: (N, G)."""
    return table.transpose(1, 2).reshape(-1, table.shape[1])[:n].contiguous()


def column_order(groups: int, group_size: int, k: int, g_idx: torch.Tensor | None) -> torch.Tensor | None:
    """``perm`` of the layout for K columns in ``groups`` groups, or None where only the tail is padded."""
    if g_idx is None and (groups == 1 or group_size % LANES == 0):
        return None
    index = torch.arange(k) // group_size if g_idx is None else g_idx.long().cpu()
    order = torch.argsort(index, stable=True)
    counts = torch.bincount(index, minlength=groups)
    # A row-parallel shard may keep scales that none of its columns uses: those groups need empty runs.
    if group_size % LANES == 0 and -(-k // group_size) == groups and torch.equal(index, torch.arange(k) // group_size):
        return None
    starts = torch.zeros(groups + 1, dtype=torch.int64)
    starts[1:] = torch.cumsum((counts + LANES - 1) // LANES * LANES, 0)
    starts[-1] = round_up(int(starts[-1]), BLOCK)
    columns = torch.full((int(starts[-1]),), -1, dtype=torch.int64)
    first = torch.cumsum(counts, 0) - counts
    columns[starts[index[order]] + torch.arange(k) - first[index[order]]] = order
    return torch.cat((columns, starts)).int()


def segments(k: int, group_size: int, groups: int, perm: torch.Tensor | None) -> list[tuple[int, int, int]]:
    """(start, stop, group) of the runs of packed columns that share a scale, cut at multiples of CHUNK.

    What ``vqp::w4a8_linear`` quantizes activations by.
    """
    columns = padded_columns(k, perm, groups)
    if perm is None:
        starts = [g * group_size for g in range(groups)] + [columns]
    else:
        starts = perm[columns:].tolist()
    found = []
    for group in range(groups):
        cuts = range(starts[group] // CHUNK * CHUNK + CHUNK, starts[group + 1], CHUNK)
        edges = [starts[group], *cuts, starts[group + 1]]
        found += [(a, b, group) for a, b in pairwise(edges) if a < b]
    return found


def padded_columns(k: int, perm: torch.Tensor | None, groups: int) -> int:
    """Kp: the columns of the packed matrix."""
    return round_up(k, BLOCK) if perm is None else perm.numel() - groups - 1
