"""How fast this machine is at this moment, under whatever else it does. No torch."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

# Wall seconds of a measurement, and of each of the windows in it. Within a window a process that shares its core is
# run and paused several times, so that the window's speed is what is left for this process.
BUDGET, WINDOW = 1.8, 0.15
# Seconds per weight of ``_round`` on an idle core of the machine that the estimate's constants were measured on.
REFERENCE_SECONDS = 1.6e-9


@dataclass(frozen=True)
class Speed:
    """What this machine does in a second.

    Attributes:
        flops: float32 operations per second of matrix products, all threads.
        slowness: time of everything else (memory, searches, small steps), over that on the reference core.
    """

    flops: float
    slowness: float = 1.0


@dataclass(frozen=True)
class SpeedRange:
    """The fastest and the slowest of several short windows."""

    fast: Speed
    slow: Speed


Work = Callable[[], float]


def _multiply() -> Work:
    import numpy

    size = 384
    left = numpy.ones((size, size), dtype=numpy.float32)

    def work() -> float:
        left @ left
        return 2.0 * size**3

    return work


def _round() -> Work:
    import numpy

    step = numpy.float32(0.01)
    weights = numpy.linspace(-1, 1, 1 << 18, dtype=numpy.float32)

    def work() -> float:
        values = weights / step
        numpy.rint(values, out=values)
        numpy.clip(values, -8, 7, out=values)
        values *= step
        values -= weights
        float((values * values).sum())
        return float(weights.size)

    return work


def _window(work: Work, clock: Callable[[], float]) -> float:
    """Units of work per second in one window."""
    done, begun = 0.0, clock()
    while True:
        done += work()
        took = clock() - begun
        if took >= WINDOW:
            return done / took


def measure_speed(
    multiply: Work | None = None,
    round_weights: Work | None = None,
    clock: Callable[[], float] = time.perf_counter,
    budget: float = BUDGET,
) -> SpeedRange:
    """Measure for about ``budget`` seconds, matrix products and rounding in turn.

    Args:
        multiply, round_weights: do a little work and return how much: operations, weights.
        clock: wall seconds.
    """
    multiply, round_weights = multiply or _multiply(), round_weights or _round()
    # Libraries start their threads at the first call.
    multiply()
    round_weights()
    flops: list[float] = []
    rates: list[float] = []
    begun = clock()
    while not flops or clock() - begun < budget:
        flops.append(_window(multiply, clock))
        rates.append(_window(round_weights, clock))
    slowness = [1 / (rate * REFERENCE_SECONDS) for rate in rates]
    return SpeedRange(Speed(max(flops), min(slowness)), Speed(min(flops), max(slowness)))
