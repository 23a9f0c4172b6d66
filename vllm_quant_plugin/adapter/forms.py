"""In which forms an integer weight can be handed to vLLM's mixed-precision kernels. No torch.

Those kernels read codes of 2 to 8 bits in groups of 16, 32, 64 or 128 input features (or one per channel), symmetric or
with integer zero points inside the code range. What a checkpoint has beyond that becomes one of these, exactly:

    wider codes     w = (c - z) s = ((c - z + r) - r) s, r = 2^(B-1) of a B-bit code: zero points are folded in
    smaller groups  the scale of a group stands for each of its pieces
    offsets         w = (c - r) s + (r - z) s, r the zero point that the kernel reads: (r - z) s times the sum of a
                    group's activations is a second, small GEMM
    a gather        act-order: columns sorted by group, activations gathered
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from vllm_quant_kernels import kernel_sizes
from vllm_quant_kernels.scheme import PER_CHANNEL, WeightScheme
from vllm_quant_kernels.sizes import round_up

# Input features per scale that a kernel of vLLM reads, the widest first; Humming alone reads 16.
GROUPS = (128, 64, 32, 16)
# Columns are padded to whole 32-bit words of codes of any width.
COLUMNS = 32
# Of columns that padding the runs of an act-order shard may add.
MOST_PADDING = 1.5

# What zero points a weight has: none, integers inside the code range, integers beyond it, or any numbers.
Zeros = Literal["none", "codes", "wide", "floating"]


@dataclass(frozen=True)
class Form:
    """One way to hand over a weight.

    Attributes:
        bits: of the codes that the kernel reads.
        group: input features per scale, ``PER_CHANNEL`` for one scale per output channel.
        zeros: whether the kernel reads zero points.
        folded: whether zero points are inside the codes.
        offset: whether (r - z) s remains for the second GEMM.
    """

    bits: int
    group: int
    zeros: bool = False
    folded: bool = False
    offset: bool = False


def forms(bits: int, zeros: Zeros, groups: Sequence[int]) -> Iterator[Form]:
    """The forms of a weight, the one that takes the least memory first.

    Args:
        bits: of its codes, 2 to 8.
        groups: sizes of group that it can be cut to, the one to prefer first.
    """
    for wide, with_zeros, folded, offset in _codes(bits, zeros):
        for group in groups:
            yield Form(wide, group, with_zeros, folded, offset)


def _codes(bits: int, zeros: Zeros) -> list[tuple[int, bool, bool, bool]]:
    """(bits, zeros, folded, offset) of every form."""
    common = bits in (4, 8)
    wider = 4 if bits < 4 else 8
    if zeros == "none":
        return [(bits, False, False, False)] + ([] if common else [(wider, False, False, False)])
    rest = zeros == "floating"
    found = [] if zeros == "wide" else [(bits, True, False, rest)]
    if common:
        return [*found, (bits, False, False, True)]
    return [*found, (wider, False, True, rest), (wider, False, True, True)]


def group_sizes(group: int, groups: int) -> tuple[int, ...]:
    """Sizes that groups of ``group`` input features can be cut to, of ``groups`` in all; empty where there is none."""
    return (PER_CHANNEL,) if groups == 1 else tuple(size for size in GROUPS if group % size == 0)


@dataclass(frozen=True)
class Columns:
    """How the input features of a weight are laid out.

    Attributes:
        groups: sizes of group to choose from, the one to prefer first.
        count: columns with padding.
        gathered: whether activations are gathered.
    """

    groups: tuple[int, ...]
    count: int
    gathered: bool = False


def columns_of(scheme: WeightScheme, k: int, full_k: int | None = None) -> Columns | None:
    """The columns of a weight with K input features, None where its groups fit no kernel.

    Exact, but for a row-parallel shard of an act-order weight, whose groups are taken as equally long.

    Args:
        full_k: K of the whole matrix, of which this is a row-parallel shard.
    """
    count = kernel_sizes.group_count(scheme, k, full_k)
    sizes = group_sizes(scheme.group_of(full_k or k), count)
    if not sizes:
        return None
    if not scheme.act_order or count == 1:
        return Columns(sizes, round_up(k, max(COLUMNS, sizes[0])))
    if full_k in (None, k):
        return Columns(sizes, round_up(k, max(COLUMNS, sizes[0])), gathered=True)
    padded = round_up(k + COLUMNS // 2 * count, COLUMNS)
    return Columns((COLUMNS,), padded, gathered=True) if padded <= MOST_PADDING * k else None
