"""Times that can be compared: alternating order, medians, weights cold in cache."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

Call = Callable[[], object]
# Weights are rotated over copies that together exceed any last-level cache by far.
COLD_BYTES = 256 << 20


@dataclass(frozen=True)
class Contender:
    """One way to compute a case.

    Attributes:
        name: as printed.
        calls: the same computation on different copies of the weights, taken in turn.
        nbytes: bytes that one call has to read at least.
    """

    name: str
    calls: Sequence[Call]
    nbytes: int


def copies_for(nbytes: int, cold_bytes: int = COLD_BYTES) -> int:
    """How many copies of a weight of ``nbytes`` make up ``cold_bytes``; at least two."""
    return max(2, -(-cold_bytes // max(nbytes, 1)))


def side_by_side(contenders: Sequence[Contender], *, rounds: int = 15, min_seconds: float = 0.02) -> dict[str, float]:
    """Median seconds per call of each contender.

    Every round times each contender once, for about ``min_seconds``, in an order that alternates,
    so that a noisy neighbour or a clock change meets all of them alike.
    """
    repeats: dict[str, int] = {}
    for contender in contenders:
        contender.calls[0]()
        start = time.perf_counter()
        contender.calls[-1]()
        repeats[contender.name] = max(1, int(min_seconds / max(time.perf_counter() - start, 1e-7)))
    samples: dict[str, list[float]] = {c.name: [] for c in contenders}
    turn = {c.name: 0 for c in contenders}
    for round_index in range(rounds):
        for contender in contenders if round_index % 2 == 0 else reversed(contenders):
            name, count, calls = contender.name, repeats[contender.name], contender.calls
            first = turn[name]
            start = time.perf_counter()
            for i in range(count):
                calls[(first + i) % len(calls)]()
            samples[name].append((time.perf_counter() - start) / count)
            turn[name] = (first + count) % len(calls)
    return {name: statistics.median(times) for name, times in samples.items()}


def read_bandwidth() -> float:
    """Bytes per second that a plain vectorised sum over ``COLD_BYTES`` of memory reads."""
    block = torch.ones(COLD_BYTES // 4)
    return COLD_BYTES / side_by_side([Contender("sum", [block.sum], COLD_BYTES)], rounds=9)["sum"]
