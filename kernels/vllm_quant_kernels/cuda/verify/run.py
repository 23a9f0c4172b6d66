"""Makes a verdict: every family in a child of its own, several at a time, then the timings, alone. No torch.

Time is bounded: a family has ``FAMILY_SECONDS``, correctness ``CORRECTNESS_SHARE`` of the whole; what no time was left
for is ``unfinished`` and not used. After a hang or a fault the GPU must answer a new process, or nothing more is run.
"""

from __future__ import annotations

import datetime
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from vllm_quant_kernels.cuda.verify.families import FAMILIES, SPEED_CLASSES
from vllm_quant_kernels.cuda.verify.machine import Gpu, Key
from vllm_quant_kernels.cuda.verify.process import Ended, run_child
from vllm_quant_kernels.cuda.verify.verdict import (
    MAX_TEXT,
    STATUSES,
    Finding,
    Speed,
    Timing,
    Verdict,
    VerdictError,
    timing_of,
)

FAMILY_SECONDS, ALIVE_SECONDS, QUIET_SECONDS = 60.0, 30.0, 90.0
CORRECTNESS_SHARE = 0.65
# Each holds a CUDA context of about half a gigabyte.
AT_ONCE = 4
CHILD = (sys.executable, "-m", "vllm_quant_kernels.cuda.verify.child", "--report", "{report}")

Report = Callable[[str, Finding], None]
SpeedReport = Callable[[str, Speed], None]


@dataclass
class Verification:
    """One run on one GPU.

    Attributes:
        child: the command of a child without its task.
        modules: modules that a child imports before it times: those that register other kernels.
        families, classes: what is checked and timed.
        found: is called after each family, ``timed`` after each speed class.
    """

    gpu: Gpu
    key: Key
    seconds: float
    child: Sequence[str] = CHILD
    modules: Sequence[str] = ()
    families: Sequence[str] = tuple(FAMILIES)
    classes: Sequence[str] = SPEED_CLASSES
    found: Report = lambda name, finding: None
    timed: SpeedReport = lambda name, speed: None
    at_once: int = AT_ONCE
    family_seconds: float = FAMILY_SECONDS
    _lost: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self) -> Verdict:
        """The verdict. Never raises for what a child does."""
        begin = time.monotonic()
        end = begin + self.seconds
        enough = begin + self.seconds * CORRECTNESS_SHARE
        pool = ThreadPoolExecutor(max(1, min(self.at_once, len(os.sched_getaffinity(0)))))
        try:
            found = pool.map(lambda name: self._check(name, enough), self.families)
            findings = dict(zip(self.families, found, strict=True))
        except BaseException:  # Ctrl-C: nothing more is started
            self._lost.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        pool.shutdown()
        verdict = Verdict(self.key, datetime.datetime.now().astimezone().isoformat(timespec="seconds"), findings)
        right = [name for name in self.classes if verdict.wrong(name) is None]
        return Verdict(verdict.key, verdict.date, findings, self._time(right, end))

    def _environment(self) -> dict[str, str]:
        """Of a child: it sees this GPU only, and runs our kernels whatever a verdict says."""
        return {**os.environ, "CUDA_VISIBLE_DEVICES": self.gpu.uuid, "VQP_CUDA_KERNELS": "1"}

    def _child(self, limit: float, on_line: Callable[[Mapping[str, Any]], None], *task: str) -> Ended:
        return run_child([*self.child, *task], limit, on_line, self._environment(), QUIET_SECONDS)

    def _check(self, name: str, end: float) -> Finding:
        finding = self._checked(name, end)
        with self._lock:
            self.found(name, finding)
        return finding

    def _checked(self, name: str, end: float) -> Finding:
        begin = time.monotonic()
        if self._lost.is_set():
            return Finding("unfinished", "the GPU no longer answered")
        limit = min(self.family_seconds, end - begin)
        if limit <= 0:
            return Finding("unfinished", "no time was left")
        last: dict[str, str] = {}

        def on_line(line: Mapping[str, Any]) -> None:
            last.update({key: str(line[key])[:300] for key in ("step", "status", "reason") if key in line})

        ended = self._child(limit, on_line, "check", name)
        seconds = round(time.monotonic() - begin, 1)
        finding = finding_of(ended, last, limit, seconds)
        if limit < self.family_seconds and finding.status == "hung":
            finding = Finding("unfinished", f"no time was left at: {last.get('step', 'its start')}", seconds)
        if finding.status in ("hung", "died") and not self._lost.is_set() and not self._alive():
            self._lost.set()
        return finding

    def _alive(self) -> bool:
        """Whether the GPU answers a new process."""
        found: dict[str, Any] = {}
        ended = self._child(ALIVE_SECONDS, found.update, "alive")
        return ended.how == "exited" and found.get("status") == "right"

    def _time(self, classes: Sequence[str], end: float) -> dict[str, Speed]:
        """Time the classes in one child, and those behind one that broke it in another."""
        found: dict[str, Speed] = {}
        left = list(classes)
        modules = [word for module in self.modules for word in ("--import", module)]
        while left and not self._lost.is_set() and end - time.monotonic() > 1:
            lines = _Lines()
            ended = self._child(end - time.monotonic(), lines, *modules, "speed", *left)
            reason = ""
            if ended.how != "exited" or ended.code or lines.status != "right":
                reason = "no time was left" if end - time.monotonic() <= 1 else explain(ended)
                if not self._lost.is_set() and not self._alive():
                    self._lost.set()
            if lines.at not in left:  # nothing began: another child would not either
                return found | {name: Speed((), reason) for name in left}
            done = left[: left.index(lines.at) + 1]
            for name in done:
                why = lines.reasons.get(name) or (reason if name == lines.at else "")
                found[name] = Speed(tuple(lines.timings.get(name, ())), why)
                self.timed(name, found[name])
            left = left[len(done) :]
        return found


class _Lines:
    """What the child that times has sent; what is malformed is left out, and its class is not timed."""

    def __init__(self) -> None:
        self.at, self.status = "", ""
        self.timings: dict[str, list[Timing]] = {}
        self.reasons: dict[str, str] = {}

    def __call__(self, line: Mapping[str, Any]) -> None:
        if isinstance(line.get("begin"), str):
            self.at = line["begin"]
        name = str(line.get("class"))
        if "timing" in line:
            try:
                self.timings.setdefault(name, []).append(timing_of(line["timing"]))
            except VerdictError as error:
                self.reasons[name] = f"a timing that is none: {error}"
        elif "class" in line:
            self.reasons[name] = one_line(str(line.get("reason")))
        elif "status" in line:
            self.status = str(line["status"])


def one_line(text: str) -> str:
    """The text as a verdict may hold it."""
    return "".join(c if c.isprintable() else " " for c in text)[:MAX_TEXT]


def explain(ended: Ended) -> str:
    """How a child ended, in words."""
    said = f": {ended.output}" if ended.output else ""
    words = {
        "signal": f"its process died of signal {ended.code}",
        "late": "no answer in time",
        "garbage": "its process sent something else than results",
        "stuck": "its process cannot be ended",
        "exited": f"its process ended with {ended.code}",
    }
    return one_line(words[ended.how] + said)


def finding_of(ended: Ended, last: Mapping[str, str], limit: float, seconds: float) -> Finding:
    """What a family's child found. Only one that said so, and then ended in good order, is right."""
    at = f" at: {last['step']}" if "step" in last else ""
    if ended.how == "late":
        return Finding("hung", one_line(f"no answer within {limit:.0f} s{at}"), seconds)
    if ended.how in ("signal", "stuck"):
        return Finding("died", one_line(explain(ended) + at), seconds)
    status = next((s for s in STATUSES if s == last.get("status")), None)
    if ended.how == "garbage" or status is None or ended.code:
        return Finding("failed", one_line(explain(ended) + at), seconds)
    reason = last.get("reason", "")
    return Finding(status, one_line(reason + at if status in ("died", "failed") else reason), seconds)
