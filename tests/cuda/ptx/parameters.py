"""The parameters of a launch. Loads are mostly of one address for all lanes."""

from __future__ import annotations

import numpy as np

from tests.cuda.ptx.arrays import Array
from tests.cuda.ptx.faults import PtxFault


class Parameters:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.known: dict[tuple[int, int, int], list[Array]] = {}

    def load(self, addresses: Array, mask: Array, width: int, count: int) -> list[Array]:
        used = addresses[mask]
        at = int(used[0])
        if (used != used[0]).any():
            raise PtxFault("a load of parameters at different addresses: not modelled")
        key = (at, width, count)
        if key not in self.known:
            if at + width * count > len(self.data):
                raise PtxFault(f"outside of the {len(self.data)} bytes of parameters: {width * count} at {at}")
            if at % (width * count):
                raise PtxFault(f"misaligned: {width * count} bytes of parameters at {at}")
            values = np.frombuffer(self.data, f"u{width}", count, at)
            self.known[key] = [np.full(32, value) for value in values]
        return self.known[key]
