"""Global memory as the device sees it: named ranges of addresses over CPU memory. What is outside of them faults."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np

from tests.cuda.ptx.arrays import Array
from tests.cuda.ptx.faults import PtxFault

TYPES = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


@dataclass(eq=False)
class Range:
    """``size`` bytes at ``address``. ``constant``: the preceding kernel does not write them, so that a dependent launch
    may read them before its wait. ``stored``: which bytes this launch has stored."""

    name: str
    address: int
    size: int
    constant: bool
    bytes: Array
    stored: Array
    skew: int  # of the first byte in ``bytes``, whose own address is a multiple of 16


class GlobalMemory:
    """Ranges by address. ``add`` takes real CPU memory, so that pointers in parameters need no translation."""

    def __init__(self) -> None:
        self.ranges: list[Range] = []
        self.starts: Array = np.zeros(0, np.uint64)

    def add(self, name: str, address: int, size: int, constant: bool = False) -> None:
        if not size:
            return
        skew = address % 16
        length = -(-(skew + size) // 16) * 16
        view = np.frombuffer((ctypes.c_uint8 * length).from_address(address - skew), np.uint8)
        self.ranges.append(Range(name, address, size, constant, view, np.zeros(length, bool), skew))
        self.ranges.sort(key=lambda r: r.address)
        self.starts = np.array([r.address for r in self.ranges], np.uint64)

    def begin_launch(self) -> None:
        for r in self.ranges:
            r.stored[:] = False

    def find(self, addresses: Array, width: int, doing: str) -> list[tuple[Range, Array, Array]]:
        """Ranges, the lanes that access them (positions in ``addresses``) and their offsets."""
        if (addresses & np.uint64(width - 1)).any():
            wrong = addresses[(addresses & np.uint64(width - 1)) != 0][0]
            raise PtxFault(f"misaligned: {doing} {width} bytes at 0x{int(wrong):x}")
        index = np.searchsorted(self.starts, addresses, "right") - 1
        found = []
        for number in np.unique(index):
            lanes = np.nonzero(index == number)[0]
            r = self.ranges[max(number, 0)]
            offsets = addresses[lanes].astype(np.int64) - r.address
            if number < 0 or int(offsets.max()) + width > r.size:
                at = int(addresses[lanes][int(offsets.argmax())])
                raise PtxFault(f"outside every tensor: {doing} {width} bytes at 0x{at:x}, 0x{at - r.address:x} after "
                               f"the start of {r.name} with its 0x{r.size:x}")  # fmt: skip
            found.append((r, lanes, offsets + r.skew))
        return found

    def load(self, addresses: Array, width: int, count: int, waited: Array, read_only: bool) -> list[Array]:
        """``count`` elements of ``width`` bytes per lane. ``waited``: lanes that may read what is not constant."""
        out = [np.zeros(len(addresses), TYPES[width]) for _ in range(count)]
        for r, lanes, offsets in self.find(addresses, width * count, "a load of"):
            self.check_wait(r, waited[lanes], "a load from")
            if read_only and not r.constant and r.stored[offsets].any():
                raise PtxFault(f"a load through the read-only path from {r.name}, which this kernel has stored to")
            elements = r.bytes.view(TYPES[width])
            for i in range(count):
                out[i][lanes] = elements[offsets // width + i]
        return out

    def store(self, addresses: Array, width: int, values: list[Array], waited: Array) -> None:
        size = width * len(values)
        for r, lanes, offsets in self.find(addresses, size, "a store of"):
            self.check_wait(r, waited[lanes], "a store to")
            if r.constant:
                raise PtxFault(f"a store to {r.name}, which is constant")
            if len(np.unique(offsets)) != len(offsets) or any(r.stored[offsets + i].any() for i in range(size)):
                raise PtxFault(f"two threads store to the same bytes of {r.name}")
            elements = r.bytes.view(TYPES[width])
            for i, value in enumerate(values):
                elements[offsets // width + i] = value[lanes]
            for i in range(size):
                r.stored[offsets + i] = True

    def span(self, address: int, size: int, waited: bool, doing: str) -> Array:
        """A copy of ``size`` bytes."""
        ((r, _, offsets),) = self.find(np.array([address], np.uint64), 1, doing)
        at = int(offsets[0])
        if at - r.skew + size > r.size:
            raise PtxFault(f"outside every tensor: {doing} {size} bytes of {r.name} from 0x{at:x}")
        self.check_wait(r, np.array([waited]), doing)
        return r.bytes[at : at + size].copy()

    def check_wait(self, r: Range, waited: Array, doing: str) -> None:
        if not r.constant and not waited.all():
            raise PtxFault(f"before griddepcontrol.wait: {doing} {r.name}, which the preceding kernel may write")

    def find_lanes(self, addresses: Array, mask: Array, width: int, waited: Array, doing: str) -> None:
        """Check an access of some lanes without making it."""
        if mask.any():
            for r, lanes, _ in self.find(addresses[mask], width, doing):
                self.check_wait(r, waited[mask][lanes], doing)
