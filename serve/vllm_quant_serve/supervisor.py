"""The supervisor: starts the server, waits until it is ready, watches it, drains it, and leaves nothing behind.

It stands beside the request path, never in it. One coroutine, ``run``, owns the life of the
server; the states it passes are those of ``State``.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any

from vllm_quant_plugin.errors import EngineDiedError, StartupError
from vllm_quant_serve.launch import Launch
from vllm_quant_serve.probe import Probe
from vllm_quant_serve.process import Guard, ServerProcess, become_subreaper
from vllm_quant_serve.report import Report
from vllm_quant_serve.rundir import VARIABLE, RunDirectory, ServerPage

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
READY_POLL = 0.25
HEALTH_POLL = 1.0
# A server whose /health fails this long is dead, though its process may linger.
HEALTH_PATIENCE = 15.0


class State(Enum):
    """Where the server is in its life."""

    STARTING = "starting"
    READY = "ready"
    UNHEALTHY = "unhealthy"
    DRAINING = "draining"
    STOPPING = "stopping"
    STOPPED = "stopped"


@dataclass(frozen=True)
class Options:
    """How to supervise; all times in seconds.

    Attributes:
        startup_timeout: until ``/health`` and ``/v1/models`` answer.
        drain_timeout: for requests in flight after the first SIGTERM.
        stop_timeout: for vLLM's own shutdown after that, before SIGKILL.
    """

    startup_timeout: float = 1800.0
    drain_timeout: float = 30.0
    stop_timeout: float = 15.0


class _Interrupted(Exception):
    """A signal arrived before the server was ready."""


class Supervisor:
    """Runs one server. ``run`` returns the exit code or raises the VqpError that carries it."""

    def __init__(
        self,
        launch: Launch,
        run_dir: RunDirectory,
        report: Report,
        options: Options,
        plan: dict[str, Any] | None = None,
    ) -> None:
        self.launch, self.run_dir, self.report, self.options, self.plan = launch, run_dir, report, options, plan
        self.state = State.STARTING
        self.server: ServerProcess | None = None
        self.started_at = time.monotonic()
        self.load_seconds: float | None = None
        self._signals: list[int] = []
        self._first = asyncio.Event()
        self._second = asyncio.Event()

    # Signals -----------------------------------------------------------------

    def on_signal(self, number: int) -> None:
        """The first asks for a drain, the second forces."""
        self._signals.append(number)
        (self._second if self._first.is_set() else self._first).set()

    async def run(self) -> int:
        """Serve until stopped.

        Returns:
            0 when it was asked to stop and every request finished, 128 + n when signal n cut it short.

        Raises:
            StartupError: the server did not become ready.
            EngineDiedError: it became ready and then died.
        """
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self.on_signal, number)
        become_subreaper()
        guard = Guard(self.run_dir.path)
        try:
            return await self._live(guard)
        finally:
            if self.server is not None and self.server.alive:
                await self.server.kill()
            self.state = State.STOPPED
            guard.close()
            self.run_dir.remove()
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    async def _live(self, guard: Guard) -> int:
        probe = Probe(self.launch)
        try:
            try:
                await self._start(guard, probe)
            except _Interrupted:
                return await self._abandon()
            await self._watch(probe)
            return await self._drain()
        finally:
            await probe.close()

    # Start -------------------------------------------------------------------

    async def _start(self, guard: Guard, probe: Probe) -> None:
        self.state, begin = State.STARTING, time.monotonic()
        self.launch.endpoint.check_free()
        self.run_dir.forget_pages()
        self.run_dir.write_plan({"plan": self.plan, "launched_at": time.time()})
        environment = {**self.launch.environment, VARIABLE: str(self.run_dir.path)}
        self.server = server = await ServerProcess.start(self.launch.argv, environment, guard)
        self.report.event("started", f"started vLLM, process {server.pid}", pid=server.pid)
        while not await self._is_ready(probe):
            await self._wait(server, READY_POLL)
            if self._first.is_set():
                raise _Interrupted
            if not server.alive:
                status = await server.kill()
                raise StartupError(f"the server ended before it was ready ({_status(status)})", _last_words(server))
            if time.monotonic() - begin > self.options.startup_timeout:
                await server.kill()
                raise StartupError(
                    f"the server was not ready after {self.options.startup_timeout:g} s",
                    "raise --startup-timeout, or look for what it waits for in its log above",
                )
        self.load_seconds = time.monotonic() - begin
        self.state = State.READY
        url = self.launch.endpoint.url
        self.report.event(
            "ready",
            f"ready after {self.load_seconds:.1f} s: {url}/v1, model {probe.model or self.launch.model}",
            url=url, model=probe.model, load_seconds=round(self.load_seconds, 3),
        )  # fmt: skip

    async def _is_ready(self, probe: Probe) -> bool:
        return self.launch.headless or await probe.ready()

    async def _wait(self, server: ServerProcess, seconds: float) -> None:
        """Until the server ends, a signal comes, or ``seconds`` have passed."""
        first = asyncio.ensure_future(self._first.wait())
        await asyncio.wait([server.exited, first], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        first.cancel()

    async def _abandon(self) -> int:
        assert self.server is not None
        self.state = State.STOPPING
        name = signal.Signals(self._signals[0]).name
        self.report.event("stopping", f"{name} while starting: stopping the server", signal=name)
        await self._stop_server()
        return 128 + self._signals[0]

    # Watch -------------------------------------------------------------------

    async def _watch(self, probe: Probe) -> None:
        """Return when a signal asks for a stop; raise when the server dies."""
        assert self.server is not None
        server, unhealthy_since = self.server, None
        while not self._first.is_set():
            await self._wait(server, HEALTH_POLL)
            if self._first.is_set():
                return
            if not server.alive:
                status = await server.kill()
                raise EngineDiedError(f"the server died ({_status(status)})", _last_words(server))
            if self.launch.headless or await probe.healthy():
                self.state, unhealthy_since = State.READY, None
                continue
            now = time.monotonic()
            if unhealthy_since is None:
                unhealthy_since = now
                self.state = State.UNHEALTHY
                self.report.event("unhealthy", "the server no longer answers /health with 200")
            elif now - unhealthy_since > HEALTH_PATIENCE:
                await server.kill()
                raise EngineDiedError(f"the server was unhealthy for {HEALTH_PATIENCE:g} s", _last_words(server))

    # Stop --------------------------------------------------------------------

    def pages(self) -> list[ServerPage]:
        """What the live API servers tell of themselves."""
        live = set(self.server.leftovers()) if self.server is not None else set()
        return [page for page in self.run_dir.pages() if page.pid in live]

    def in_flight(self) -> int:
        """Requests that the API servers are answering."""
        return sum(page.in_flight for page in self.pages())

    async def _drain(self) -> int:
        """Refuse new requests, let those in flight finish, stop the server; the exit code."""
        assert self.server is not None
        self.state = State.DRAINING
        name = signal.Signals(self._signals[0]).name
        self.run_dir.set_draining(True)
        waiting = self.in_flight()
        limit = self.options.drain_timeout
        self.report.event(
            "draining", f"{name}: refusing new requests, {waiting} in flight have {limit:g} s (again to force)",
            signal=name, in_flight=waiting,
        )  # fmt: skip
        deadline, quiet = time.monotonic() + limit, 0
        # Twice at zero: the flag and the count are two memory locations, and a request may just have passed.
        while quiet < 2 and time.monotonic() < deadline and not self._second.is_set() and self.server.alive:
            quiet = quiet + 1 if self.in_flight() == 0 else 0
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._second.wait(), 0.1)
        left = self.in_flight()
        self.state = State.STOPPING
        await self._stop_server()
        if self._second.is_set():
            number = self._signals[1]
            self.report.event("stopped", f"forced by a second {signal.Signals(number).name}, {left} requests cut",
                              exit_code=128 + number, cut=left)  # fmt: skip
            return 128 + number
        if left:
            number = self._signals[0]
            self.report.event("stopped", f"stopped; {left} requests were cut after {limit:g} s (--drain-timeout)",
                              exit_code=128 + number, cut=left)  # fmt: skip
            return 128 + number
        self.report.event("stopped", "stopped; every request in flight was answered", exit_code=0, cut=0)
        return 0

    async def _stop_server(self) -> None:
        """vLLM's own shutdown, cut short by a second signal; then whatever is left is killed."""
        assert self.server is not None
        stop = asyncio.ensure_future(self.server.stop(self.options.stop_timeout))
        force = asyncio.ensure_future(self._second.wait())
        await asyncio.wait([stop, force], return_when=asyncio.FIRST_COMPLETED)
        force.cancel()
        if not stop.done():
            await self.server.kill()
        await stop


def _status(status: int) -> str:
    """An exit status in words."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


def _last_words(server: ServerProcess) -> str:
    """The last line of the log that speaks of an error."""
    lines = [line.strip() for line in server.pump.tail if line.strip()]
    telling = [line for line in lines if "Error" in line or "error:" in line.lower()]
    chosen = (telling or lines or [""])[-1]
    return f"its log ends: {chosen[:300]}" if chosen else f"its log is empty (process {os.getpid()})"
