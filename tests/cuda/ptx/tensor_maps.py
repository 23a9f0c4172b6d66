"""Tensor maps as ``cuTensorMapEncodeTiled`` makes them of a matrix of bytes, and the boxes that TMA copies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tests.cuda.ptx.arrays import Array
from tests.cuda.ptx.faults import PtxFault
from tests.cuda.ptx.memory import GlobalMemory

SWIZZLE = 128


@dataclass(frozen=True)
class TensorMap:
    """(rows, columns) bytes, ``stride`` apart, a box of ``box_rows`` x ``box_columns``, swizzled by 128 bytes."""

    base: int
    rows: int
    columns: int
    stride: int
    box_rows: int
    box_columns: int

    def __post_init__(self) -> None:
        if self.base % 16 or self.stride % 16:
            raise PtxFault(f"a tensor map at 0x{self.base:x} with rows 0x{self.stride:x} apart: not multiples of 16")
        if not 0 < self.rows <= 1 << 32 or not 0 < self.columns <= 1 << 32 or not 0 < self.stride < 1 << 40:
            raise PtxFault(f"a tensor map of {self.rows} x {self.columns}, {self.stride} apart")
        if not 0 < self.box_rows <= 256 or not 0 < self.box_columns <= SWIZZLE or self.box_columns % 16:
            raise PtxFault(f"a box of {self.box_rows} x {self.box_columns} bytes")

    @property
    def box_bytes(self) -> int:
        return self.box_rows * self.box_columns

    def box(self, memory: GlobalMemory, column: int, row: int, waited: bool) -> Array:
        """The bytes of a box in the order of shared memory, zeros outside of the matrix, before the swizzle."""
        out = np.zeros((self.box_rows, self.box_columns), np.uint8)
        first, last = max(column, 0), min(column + self.box_columns, self.columns)
        for i in range(max(-row, 0), min(self.box_rows, self.rows - row)):
            if first < last:
                at = self.base + (row + i) * self.stride + first
                out[i, first - column : last - column] = memory.span(at, last - first, waited, "a tensor copy of")
        return out


def swizzle(offsets: Array) -> Array:
    """The 128-byte swizzle: bits 4 to 6 of an address XOR its bits 7 to 9."""
    return offsets ^ (((offsets >> 7) & 7) << 4)
