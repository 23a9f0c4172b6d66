"""The drain: requests sent before the signal are answered, later ones refused, and what was cut is counted."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from vllm_quant_serve.supervise.options import SuperviseOptions
from vllm_quant_serve.supervise.probe import Probe
from vllm_quant_serve.supervise.process import ServerProcess
from vllm_quant_serve.supervise.report import Report
from vllm_quant_serve.supervise.run_directory import RunDirectory, ServerPage
from vllm_quant_serve.supervise.signals import StopSignals

POLL = 0.1
# A loaded server may take seconds to accept what was sent to it. No longer, since new requests come meanwhile.
ACCEPT_LIMIT = 10.0


@dataclass(frozen=True)
class Totals:
    """Sums over the API servers."""

    unfinished: int
    answered: int
    broken: int
    refused: int

    @classmethod
    def of(cls, pages: Sequence[ServerPage]) -> Totals:
        return cls(
            sum(page.unfinished for page in pages), sum(page.answered for page in pages),
            sum(page.broken for page in pages), sum(page.refused for page in pages),
        )  # fmt: skip


@dataclass(frozen=True)
class Drained:
    """How a drain ended.

    Attributes:
        answered: requests that were answered since the signal.
        cut: requests that were left without their last byte, or whose answer vLLM ended early.
        refused: requests that came later and were refused with 503.
        killed: whether the server had to be killed after ``stop_timeout``.
    """

    answered: int
    cut: int
    refused: int
    killed: bool


class Drain:
    """One drain of a server."""

    def __init__(
        self, server: ServerProcess, run_dir: RunDirectory, probe: Probe, signals: StopSignals,
        options: SuperviseOptions, report: Report,
    ) -> None:  # fmt: skip
        self.server, self.run_dir, self.probe = server, run_dir, probe
        self.signals, self.options, self.report = signals, options, report

    async def run(self, on_stopping: Callable[[], None]) -> Drained:
        """Drain and stop the server.

        Args:
            on_stopping: called when no request is left or time is up.
        """
        limit = self.options.drain_timeout
        deadline = time.monotonic() + limit
        before = self._totals()
        await self._pass_queue(min(deadline, time.monotonic() + ACCEPT_LIMIT))
        self.run_dir.set_draining(True)
        name = signal.Signals(self.signals.numbers[0]).name
        left = self._totals().unfinished
        self.report.event(
            "draining", f"{name}: refusing new requests; {left} in flight have {limit:g} s (signal again to force)",
            signal=name, in_flight=left,
        )  # fmt: skip
        while not await self._is_idle(deadline) and time.monotonic() < deadline and not self._over():
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.signals.second.wait(), POLL)
        on_stopping()
        _, killed = await self.server.stop(self.options.stop_timeout, force=self.signals.second)
        # The pages outlive their processes: a request that a dead process was answering is still in flight there.
        after = self._totals()
        broken = after.broken - before.broken
        return Drained(
            after.answered - before.answered, after.unfinished + broken, after.refused - before.refused, killed
        )

    def _totals(self) -> Totals:
        return Totals.of(self.run_dir.pages())

    def _over(self) -> bool:
        return self.signals.second.is_set() or not self.server.alive

    async def _is_idle(self, deadline: float) -> bool:
        """Whether no request is left, in the server or waiting to be accepted by it."""
        if self._totals().unfinished:
            return False
        # What waits to be accepted gets its 503 before the listening socket closes, which would reset it.
        await self._pass_queue(deadline)
        return self._totals().unfinished == 0

    async def _pass_queue(self, deadline: float) -> None:
        """Return when the server has seen every request that was sent to it before this call, or at the deadline.

        Connections are accepted in the order in which they were made, so the answer on a new connection comes after
        every earlier connection was accepted, and a second one after what was sent on them was read. Each API server
        process accepts from one queue.
        """
        count = max(len(self.run_dir.pages()), 1)
        for _ in range(2):
            seconds = deadline - time.monotonic()
            if seconds <= 0 or self._over():
                return
            asked = asyncio.gather(*(self.probe.fresh_health(seconds) for _ in range(count)))
            second = asyncio.ensure_future(self.signals.second.wait())
            waited: list[asyncio.Future[Any]] = [asked, second, self.server.exited]
            await asyncio.wait(waited, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            asked.cancel()
            second.cancel()


def describe(drained: Drained, signals: StopSignals, options: SuperviseOptions) -> tuple[int, str]:
    """The exit code and a line for the user."""
    later = f"; {drained.refused} later ones were refused with 503" if drained.refused else ""
    if drained.killed and not signals.second.is_set():
        later += f"; vLLM did not stop within {options.stop_timeout:g} s and was killed"
    first = signal.Signals(signals.numbers[0])
    if signals.second.is_set():
        second = signal.Signals(signals.numbers[1])
        return 128 + second, f"forced by a second {second.name}; {drained.cut} requests were cut"
    if drained.cut:
        total = drained.answered + drained.cut
        return 128 + first, (
            f"stopped; {drained.cut} of {total} requests in flight were cut, by --drain-timeout "
            f"({options.drain_timeout:g} s) or by vLLM{later}"
        )
    return 0, f"stopped; every request in flight was answered ({drained.answered}){later}"
