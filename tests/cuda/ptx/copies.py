"""Asynchronous copies to shared memory: ``cp.async`` in groups, bulk and tensor copies that complete on an mbarrier.

From its issue to its completion a copy owns the memory it fills; the data land at its issue, or as late as they may."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tests.cuda.ptx.arrays import Array
from tests.cuda.ptx.faults import PtxFault
from tests.cuda.ptx.mbarriers import Mbarrier
from tests.cuda.ptx.tensor_maps import swizzle

if TYPE_CHECKING:
    from tests.cuda.ptx.machine import Cta
    from tests.cuda.ptx.warp import Warp


@dataclass
class LaneCopies:
    """One cp.async of a warp, for the lanes in ``left``."""

    left: Array
    group: Array  # of each lane
    offsets: Array
    sources: Array
    sizes: Array
    landed: bool = False


class CopyGroups:
    """The cp.async copies of a warp. Lanes commit and wait each for themselves."""

    def __init__(self, warp: Warp) -> None:
        self.warp = warp
        self.committed = np.zeros(32, np.int64)
        self.copies: list[LaneCopies] = []

    def issue(self, opcode: str, size: int, mask: Array, to: Array, source: Array, sizes: Array) -> None:
        parts = opcode.split(".")
        if "L2::cache_hint" in parts:
            raise PtxFault("cp.async with a cache policy: ptxas 13.0 may drop the createpolicy for sm_90")
        if parts[2] not in ("ca", "cg") or (parts[2] == "cg" and size != 16):
            raise PtxFault(f"no such copy: {opcode} of {size} bytes")
        if (sizes[mask] > size).any():
            raise PtxFault(f"cp.async reads more than it writes: {sizes[mask].max()} of {size} bytes")
        shared = self.warp.cta.shared
        offsets = np.zeros(32, np.int64)
        offsets[mask] = shared.offsets(to[mask], size, "a copy of")
        words = shared.words(offsets[mask], size)
        if len(np.unique(words)) != len(words):
            raise PtxFault("two lanes copy to the same shared memory")
        shared.begin_fill(words, self.warp.number)
        self.warp.memory.find_lanes(source, mask & (sizes > 0), size, self.warp.waited, "a copy of")
        copy = LaneCopies(mask.copy(), self.committed.copy(), offsets, source, np.where(mask, sizes, 0))
        self.copies.append(copy)
        if self.warp.machine.early():
            self.land(copy, mask)
            copy.landed = True

    def land(self, copy: LaneCopies, mask: Array) -> None:
        for lane in np.nonzero(mask)[0]:
            data = np.zeros(16, np.uint8)
            size = int(copy.sizes[lane])
            if size:
                data[:size] = self.warp.memory.span(int(copy.sources[lane]), size, True, "a copy of")
            self.warp.cta.shared.land(int(copy.offsets[lane]), data)

    def commit(self, mask: Array) -> None:
        self.committed[mask] += 1

    def wait(self, pending: int, mask: Array) -> None:
        for copy in self.copies:
            done = mask & copy.left & (copy.group < self.committed - pending)
            if done.any():
                if not copy.landed:
                    self.land(copy, done)
                words = self.warp.cta.shared.words(copy.offsets[done], 16)
                self.warp.cta.shared.end_fill(words, self.warp.number)
                self.warp.unfenced.append(words)
                copy.left &= ~done
        self.copies = [copy for copy in self.copies if copy.left.any()]


def issue_bulk(warp: Warp, opcode: str, lane: int, to: int, barrier: int, targets: list[Cta], *source: int) -> None:
    """A bulk copy of one thread into each of ``targets``, at the same offsets. ``source``: address and bytes, or a
    tensor map's address, column and row."""
    machine, waited = warp.machine, bool(warp.waited[lane])
    shared = warp.cta.shared
    if "tensor" in opcode:
        tensor_map = machine.tensor_map(source[0])
        size, alignment = tensor_map.box_bytes, 128
    else:
        size, alignment = source[1], 16
        if size % 16 or size <= 0:
            raise PtxFault(f"a bulk copy of {size} bytes")
        if source[0] % 16:
            raise PtxFault(f"misaligned: a bulk copy from 0x{source[0]:x}")
    (offset,) = shared.offsets(np.array([to], np.uint32), 1, "a bulk copy to")
    if to % alignment or offset + size > shared.size:
        raise PtxFault(f"a bulk copy of {size} bytes to offset {offset}: misaligned, or outside of shared memory")
    if "tensor" in opcode:
        data = tensor_map.box(warp.memory, _signed(source[1]), _signed(source[2]), waited).ravel()
        places = swizzle(np.arange(size, dtype=np.int64) + to) - to
        if (places < 0).any() or (places >= size).any():
            raise PtxFault(
                f"a box at offset {offset} shares its swizzle atom with other data: a multiple of 1024 is due"
            )
        moved = np.empty_like(data)
        moved[places] = data
        data = moved
    else:
        data = warp.memory.span(source[0], size, waited, "a bulk copy of")
    words = shared.words(np.arange(offset, offset + size, 4), 4)
    for cta in targets:
        bar = cta.mbarrier(barrier, warp, asynchronous=True)
        cta.shared.begin_bulk_fill(words)
        machine.later(_Arrival(cta, int(offset), data, words, bar))


@dataclass
class _Arrival:
    """Bytes on their way to one CTA, and the mbarrier that they complete on."""

    cta: Cta
    offset: int
    data: Array
    words: Array
    bar: Mbarrier

    def __call__(self) -> None:
        self.cta.shared.land(self.offset, self.data)
        self.bar.filled.append(self.words)
        if self.bar.complete(len(self.data)):
            self.cta.phase_ended(self.bar)


def _signed(value: int) -> int:
    return value - (1 << 32) if value >= 1 << 31 else value
