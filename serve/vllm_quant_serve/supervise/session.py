"""The supervisor: starts the server, waits until it is ready, watches it, drains it, and leaves nothing behind.

It stands beside the request path, never in it. One coroutine, ``run``, owns the life of the
server; its parts are ``starting``, ``oversight`` and ``stopping``, the states it passes those of ``State``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from vllm_quant_plugin.errors import EngineDiedError
from vllm_quant_serve.launch import Launch
from vllm_quant_serve.supervise.actuals import Actuals
from vllm_quant_serve.supervise.fallbacks import MemoryFallbacks
from vllm_quant_serve.supervise.guard import in_session
from vllm_quant_serve.supervise.history import History
from vllm_quant_serve.supervise.monitor import oversee
from vllm_quant_serve.supervise.probe import Probe
from vllm_quant_serve.supervise.process import Guard, ServerProcess, become_subreaper
from vllm_quant_serve.supervise.report import Report
from vllm_quant_serve.supervise.run_directory import RunDirectory, ServerPage
from vllm_quant_serve.supervise.starting import bring_up
from vllm_quant_serve.supervise.state import Counts, State, SuperviseOptions
from vllm_quant_serve.supervise.stopping import Interrupted, StopSignals, abandon, drain


class Session:
    """Runs one server. ``run`` returns the exit code or raises the VqpError that carries it."""

    def __init__(
        self,
        launch: Launch,
        run_dir: RunDirectory,
        report: Report,
        options: SuperviseOptions,
        plan: dict[str, Any] | None = None,
        fallbacks: MemoryFallbacks | None = None,
        told: Mapping[str, Any] | None = None,
        on_first_ready: Callable[[Session], Coroutine[Any, Any, None]] | None = None,
    ) -> None:
        """``told`` goes to the stat logger beside the plan: peaks, objectives, price.

        ``on_first_ready`` runs beside the oversight, once, and must not raise.
        """
        self.launch, self.run_dir, self.report, self.options = launch, run_dir, report, options
        self.plan, self.fallbacks, self.told = plan, fallbacks, dict(told or {})
        self.state = State.STARTING
        self.counts = Counts()
        self.server: ServerProcess | None = None
        self.probe = Probe(launch)
        self.actuals = Actuals()
        self.history = History()
        self.load_seconds: float | None = None
        self.ready_at: float | None = None
        self.signals = StopSignals()
        self._on_first_ready = on_first_ready
        self._told_ready: asyncio.Task[None] | None = None

    async def run(self) -> int:
        """Serve until stopped.

        Returns:
            0 when it was asked to stop and every request finished, 128 + n when signal n cut it short.

        Raises:
            UsageError: vLLM does not know one of the flags.
            StartupError: the server did not become ready.
            EngineDiedError: it became ready, then died or hung, and no restart was left.
        """
        become_subreaper()
        guard = Guard(self.run_dir.path)
        following = asyncio.ensure_future(self.history.follow(self.probe))
        with self.signals:
            try:
                return await self._live(guard)
            except Interrupted:
                return await abandon(self)
            finally:
                if self.server is not None and self.server.leftovers():
                    await self.server.kill()
                self.state = State.STOPPED
                following.cancel()
                if self._told_ready is not None:
                    await self._told_ready
                await self.probe.close()
                guard.close()
                self.run_dir.remove()

    async def _live(self, guard: Guard) -> int:
        used = 0
        while True:
            await bring_up(self, guard)
            if self._on_first_ready is not None and self._told_ready is None:
                self._told_ready = asyncio.create_task(self._on_first_ready(self))
            try:
                await oversee(self)
                return await drain(self)
            except EngineDiedError as died:
                if self.ready_at is not None and time.monotonic() - self.ready_at > self.options.stable:
                    used = 0
                if used >= self.options.restarts:
                    raise
                await self._back_off(died, used)
                used += 1

    async def _back_off(self, died: EngineDiedError, used: int) -> None:
        """Wait before a restart; a signal meanwhile ends it all."""
        delay = min(self.options.backoff * 2**used, self.options.backoff_limit)
        self.state = State.RESTARTING
        self.counts.restarts += 1
        self.report.event("restart", f"{died.message}; restart {used + 1} of {self.options.restarts} in {delay:g} s",
                          reason=died.message, restart=used + 1)  # fmt: skip
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.signals.first.wait(), delay)
            raise Interrupted

    async def wait(self, seconds: float) -> None:
        """Until the server ends, a signal comes, or ``seconds`` have passed."""
        assert self.server is not None
        first = asyncio.ensure_future(self.signals.first.wait())
        await asyncio.wait([self.server.exited, first], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        first.cancel()

    def pages(self) -> list[ServerPage]:
        """What the live API servers tell of themselves."""
        if self.server is None:
            return []
        # Each page's process alone is looked at: scrapes and the drain ask often, and a host may have many processes.
        return [page for page in self.run_dir.pages() if in_session(page.pid, self.server.pid)]

    def in_flight(self) -> int:
        """Requests that the API servers are answering."""
        return sum(page.in_flight for page in self.pages())

    def status(self) -> dict[str, Any]:
        """What ``/status`` of the admin app shows."""
        serving = self.server is not None and self.server.alive
        return {
            "state": self.state.value,
            "model": self.probe.model or self.launch.model,
            "url": self.launch.endpoint.url,
            "command": self.launch.line,
            "pid": self.server.pid if serving and self.server else None,
            "ready_seconds": time.monotonic() - self.ready_at if self.ready_at is not None and serving else None,
            "load_seconds": self.load_seconds,
            "in_flight": self.in_flight() if serving else None,
            "plan": self.plan,
            "actual": self.actuals.known(),
            "counts": asdict(self.counts),
            "events": self.report.history[-30:],
            "history": self.history.to_json(),
        }
