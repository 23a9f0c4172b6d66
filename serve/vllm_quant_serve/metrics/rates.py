"""Rates over a sliding window."""

from __future__ import annotations

from collections import deque


class SlidingRate:
    """Events per second over the last ``window`` seconds.

    Amounts are kept in buckets of ``window / 20``, so memory and time per call are constant however many events
    arrive. Until a whole window has passed since the first event, the divisor is the time since that event, so a burst
    is not diluted by the time before it.
    """

    def __init__(self, window: float = 10.0) -> None:
        self.window = window
        self._width = window / 20
        self._buckets: deque[tuple[int, float]] = deque()
        self._total = 0.0
        self._first: float | None = None

    def add(self, now: float, amount: float) -> None:
        """Count ``amount`` at time ``now`` (seconds, never decreasing)."""
        if self._first is None:
            self._first = now
        index = int(now / self._width)
        if self._buckets and self._buckets[-1][0] == index:
            self._buckets[-1] = (index, self._buckets[-1][1] + amount)
        else:
            self._buckets.append((index, amount))
        self._total += amount

    def rate(self, now: float) -> float:
        """Amount per second over the window that ends at ``now``; 0 when nothing came in it."""
        oldest = int((now - self.window) / self._width)
        while self._buckets and self._buckets[0][0] <= oldest:
            self._total -= self._buckets.popleft()[1]
        if not self._buckets or self._first is None:
            self._total, self._first = 0.0, None
            return 0.0
        # One bucket is the finest time known: a single event has no duration.
        return self._total / min(self.window, max(now - self._first, self._width))
