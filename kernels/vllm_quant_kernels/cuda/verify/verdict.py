"""A verdict: which families are right on a GPU, and where ours are faster than what would serve otherwise. No torch.

The rule. A layer keeps one packed form, so one kernel serves all of its calls, from M = 1 (one sequence decodes) to the
tokens of a prefill, 2,048 and more by vLLM's defaults: a layer meets every M that is timed. Ours serves it where

1. every family that it may run on is right (``wide`` may be absent: no Hopper GPU), and
2. at every timed M the geometric mean over the shapes of ours / theirs is at most ``TIE``, and
3. the geometric mean over all M is below 1.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from vllm_quant_kernels.cuda.verify.families import FAMILIES, SPEED_CLASSES, needs
from vllm_quant_kernels.cuda.verify.machine import Key

FORMAT = 1
# Differences of a few percent are within what repeated measurements of one kernel show.
TIE = 1.05
Status = Literal["right", "wrong", "hung", "died", "failed", "absent", "unfinished"]
STATUSES: tuple[Status, ...] = get_args(Status)
MAX_TIMINGS, MAX_TEXT = 200, 500


class VerdictError(ValueError):
    """What is no verdict; the message says in what."""


@dataclass(frozen=True)
class Finding:
    """Of one family.

    Attributes:
        status: ``right``; ``wrong`` numbers; ``hung``, no answer in time; ``died`` of a signal or a fault of the GPU;
            ``failed``, an error of another kind; ``absent`` on this GPU; ``unfinished``, no time or memory was left.
        reason: one line, for all but ``right``.
        seconds: that it took.
    """

    status: Status
    reason: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Timing:
    """Ours beside the kernel ``peer`` in one case: microseconds of one call of y (m, n) = x (m, k) W^T."""

    m: int
    n: int
    k: int
    ours: float
    theirs: float
    peer: str


@dataclass(frozen=True)
class Speed:
    """Of one speed class; ``reason``: why it was not timed, or not to the end."""

    timings: tuple[Timing, ...] = ()
    reason: str = ""

    def ratios(self) -> dict[int, float]:
        """By M, ascending: the geometric mean over the shapes of ours / theirs."""
        by_m: dict[int, list[float]] = {}
        for timing in self.timings:
            by_m.setdefault(timing.m, []).append(timing.ours / timing.theirs)
        return {m: statistics.geometric_mean(by_m[m]) for m in sorted(by_m)}

    def faster(self) -> tuple[int, int] | None:
        """The longest run of timed M at which ours is faster: its first and last M."""
        best: list[int] = []
        run: list[int] = []
        for m, ratio in self.ratios().items():
            run = [*run, m] if ratio < 1 else []
            best = max(best, run, key=len)
        return (best[0], best[-1]) if best else None

    def why_not(self) -> str | None:
        """Why ours does not serve; None where it does."""
        ratios = self.ratios()
        if not ratios or self.reason:
            return f"not timed beside another kernel: {self.reason or 'no time was left'}"
        slower = [m for m, ratio in ratios.items() if ratio > TIE]
        if slower:
            peers = ", ".join(sorted({t.peer for t in self.timings if t.m in slower}))
            worst = max(slower, key=ratios.__getitem__)
            return f"slower than {peers} at M = {', '.join(map(str, slower))} ({ratios[worst]:.2f}x at {worst})"
        if statistics.geometric_mean(ratios.values()) >= 1:
            return f"not faster than {', '.join(sorted({t.peer for t in self.timings}))}"
        return None


@dataclass(frozen=True)
class Verdict:
    """What was found on one model of GPU."""

    key: Key
    date: str
    families: dict[str, Finding]
    speed: dict[str, Speed] = field(default_factory=dict)

    def wrong(self, timed: str) -> str | None:
        """Why the families of a speed class are not proven; None where they are."""
        for name in needs(timed):
            found = self.families.get(name, Finding("unfinished", "not checked"))
            if found.status == "right" or (found.status == "absent" and FAMILIES[name].part == "wide"):
                continue
            return f"{name}: {found.status}" + (f" ({found.reason})" if found.reason else "")
        return None

    def why_not(self, timed: str) -> str | None:
        """Why ours does not serve a layer of a speed class; None where it does."""
        return self.wrong(timed) or self.speed.get(timed, Speed()).why_not()

    def to_json(self) -> dict[str, Any]:
        """Plain values. ``faster`` and ``serves`` say what follows from the rest; ``from_json`` derives them again."""
        return {
            "format": FORMAT,
            "key": asdict(self.key),
            "date": self.date,
            "families": {name: asdict(finding) for name, finding in self.families.items()},
            "speed": {
                name: {
                    "timings": [asdict(timing) for timing in speed.timings],
                    "reason": speed.reason,
                    "faster": speed.faster(),
                    "serves": self.why_not(name) is None,
                    "why_not": self.why_not(name),
                }
                for name, speed in self.speed.items()
            },
        }

    @classmethod
    def from_json(cls, value: object) -> Verdict:
        """The inverse of ``to_json``. Raises VerdictError for anything else."""
        top = _mapping(value, "the file")
        if top.get("format") != FORMAT:
            raise VerdictError("of another format")
        key = _mapping(top.get("key"), "key")
        names = [f.name for f in fields(Key)]
        families = {
            _known(name, FAMILIES, "family"): _finding(found)
            for name, found in _mapping(top.get("families"), "families").items()
        }
        speed = {
            _known(name, SPEED_CLASSES, "speed class"): _speed(found)
            for name, found in _mapping(top.get("speed"), "speed").items()
        }
        return cls(Key(*(_text(key.get(name)) for name in names)), _text(top.get("date")), families, speed)


def _mapping(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise VerdictError(f"{what} is no object")
    return value


def _known(name: str, names: Iterable[str], what: str) -> str:
    if name not in names:
        raise VerdictError(f"an unknown {what}")
    return name


def _text(value: object) -> str:
    """One printable line."""
    if not isinstance(value, str) or len(value) > MAX_TEXT or not value.isprintable():
        raise VerdictError("a text that is none")
    return value


def _number(value: object, low: float = 0.0) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value < math.inf:
        raise VerdictError("a number that is none")
    return float(value)


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 31:
        raise VerdictError("a size that is none")
    return value


def _finding(value: object) -> Finding:
    found = _mapping(value, "a finding")
    status = next((s for s in STATUSES if s == found.get("status")), None)
    if status is None:
        raise VerdictError("an unknown status")
    return Finding(status, _text(found.get("reason")), _number(found.get("seconds")))


def timing_of(value: object) -> Timing:
    """A timing from plain values. Raises VerdictError."""
    found = _mapping(value, "a timing")
    m, n, k = (_count(found.get(name)) for name in ("m", "n", "k"))
    ours, theirs = (_number(found.get(name), 1e-3) for name in ("ours", "theirs"))
    return Timing(m, n, k, ours, theirs, _text(found.get("peer")))


def _speed(value: object) -> Speed:
    found = _mapping(value, "a speed")
    timings = found.get("timings")
    if not isinstance(timings, list) or len(timings) > MAX_TIMINGS:
        raise VerdictError("timings that are none")
    return Speed(tuple(timing_of(timing) for timing in timings), _text(found.get("reason")))
