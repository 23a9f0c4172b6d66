"""Times to the first byte of the last answers, from the API servers to the supervisor, for exact quantiles.

A histogram knows a time as well as its buckets are narrow. Here each API server process keeps the last ``KEPT`` times
themselves in a file of the run directory that it maps: two rings of float64 seconds, one for streamed answers and one
for whole ones, after a count of each. There is one writer, so nothing is locked.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Sequence
from pathlib import Path

KEPT = 1024
PREFIX = "first-bytes-"
QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
_COUNTS = struct.Struct("qq")
_SIZE = _COUNTS.size + 2 * 8 * KEPT


class FirstBytes:
    """The server's side: this process's rings."""

    def __init__(self, folder: Path) -> None:
        with open(folder / f"{PREFIX}{os.getpid()}", "w+b") as file:
            file.truncate(_SIZE)
            self._map = mmap.mmap(file.fileno(), _SIZE)
        self._counts = [0, 0]

    def add(self, seconds: float, *, streamed: bool) -> None:
        """An answer was given whose first byte came after ``seconds``."""
        ring = 0 if streamed else 1
        place = ring * KEPT + self._counts[ring] % KEPT
        struct.pack_into("d", self._map, _COUNTS.size + 8 * place, seconds)
        self._counts[ring] += 1
        # After the time itself: a reader never sees a place that was not written.
        _COUNTS.pack_into(self._map, 0, *self._counts)


def read(folder: Path) -> tuple[list[float], list[float]]:
    """The times of all API servers, in seconds: of streamed answers, and of whole ones."""
    found: tuple[list[float], list[float]] = ([], [])
    for path in folder.glob(PREFIX + "*"):
        raw = path.read_bytes()
        if len(raw) < _SIZE:
            continue
        for ring, count in enumerate(_COUNTS.unpack_from(raw)):
            kept = min(count, KEPT)
            found[ring].extend(struct.unpack_from(f"{kept}d", raw, _COUNTS.size + 8 * KEPT * ring))
    return found


def quantiles(times: Sequence[float]) -> dict[str, float] | None:
    """How many ``times`` there are, and the smallest of them that each share does not exceed; None without any."""
    if not times:
        return None
    ordered = sorted(times)
    last = len(ordered) - 1
    shares = {name: ordered[min(max(-int(-q * len(ordered) // 1) - 1, 0), last)] for name, q in QUANTILES.items()}
    return {"answers": len(ordered), **shares}
