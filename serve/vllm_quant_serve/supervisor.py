"""The supervisor: starts the server, waits until it is ready, watches it, drains it, and leaves nothing behind.

It stands beside the request path, never in it. One coroutine, ``run``, owns the life of the
server; the states it passes are those of ``State``.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from vllm_quant_plugin.errors import EngineDiedError, StartupError, UsageError
from vllm_quant_serve.actuals import Actuals
from vllm_quant_serve.failures import Cause, Failure, classify
from vllm_quant_serve.history import History
from vllm_quant_serve.launch import Launch
from vllm_quant_serve.probe import Probe
from vllm_quant_serve.process import Guard, ServerProcess, become_subreaper
from vllm_quant_serve.relax import MAX_ATTEMPTS, Relaxer
from vllm_quant_serve.report import Report
from vllm_quant_serve.rundir import VARIABLE, RunDirectory, ServerPage
from vllm_quant_serve.state import Counts, Options, State
from vllm_quant_serve.watch import Watchdog

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
READY_POLL = 0.25
HEALTH_POLL = 1.0


class _Interrupted(Exception):
    """A signal arrived before the server was ready."""


class _StartFailed(Exception):
    """One attempt to start failed."""

    def __init__(self, failure: Failure, message: str) -> None:
        self.failure, self.message = failure, message


class Supervisor:
    """Runs one server. ``run`` returns the exit code or raises the VqpError that carries it."""

    def __init__(
        self,
        launch: Launch,
        run_dir: RunDirectory,
        report: Report,
        options: Options,
        plan: dict[str, Any] | None = None,
        relaxer: Relaxer | None = None,
        told: Mapping[str, Any] | None = None,
    ) -> None:
        """``told`` goes to the stat logger beside the plan: peaks, objectives, price."""
        self.launch, self.run_dir, self.report, self.options = launch, run_dir, report, options
        self.plan, self.relaxer, self.told = plan, relaxer, dict(told or {})
        self.state = State.STARTING
        self.counts = Counts()
        self.server: ServerProcess | None = None
        self.watchdog: Watchdog | None = None
        self.probe = Probe(launch)
        self.actuals = Actuals()
        self.history = History()
        self.load_seconds: float | None = None
        self.ready_at: float | None = None
        self._signals: list[int] = []
        self._first = asyncio.Event()
        self._second = asyncio.Event()

    def on_signal(self, number: int) -> None:
        """The first asks for a drain, the second forces."""
        self._signals.append(number)
        (self._second if self._first.is_set() else self._first).set()

    async def run(self) -> int:
        """Serve until stopped.

        Returns:
            0 when it was asked to stop and every request finished, 128 + n when signal n cut it short.

        Raises:
            UsageError: vLLM does not know one of the flags.
            StartupError: the server did not become ready.
            EngineDiedError: it became ready, then died or hung, and no restart was left.
        """
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self.on_signal, number)
        become_subreaper()
        guard = Guard(self.run_dir.path)
        following = asyncio.ensure_future(self.history.follow(self.probe))
        try:
            return await self._live(guard)
        except _Interrupted:
            return await self._abandon()
        finally:
            if self.server is not None and self.server.leftovers():
                await self.server.kill()
            self.state = State.STOPPED
            following.cancel()
            await self.probe.close()
            guard.close()
            self.run_dir.remove()
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    async def _live(self, guard: Guard) -> int:
        used = 0
        while True:
            await self._bring_up(guard)
            try:
                await self._watch()
                return await self._drain()
            except EngineDiedError as died:
                if self.ready_at is not None and time.monotonic() - self.ready_at > self.options.stable:
                    used = 0
                if used >= self.options.restarts:
                    raise
                await self._back_off(died, used)
                used += 1

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

    # Start -------------------------------------------------------------------

    async def _bring_up(self, guard: Guard) -> None:
        """Start until ready, asking for less after memory failures."""
        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                await self._start(guard)
                return
            except _StartFailed as failed:
                failure = failed.failure
                self.counts.failed(failure.cause.value)
                relaxed = self.relaxer.step(failure) if self.relaxer and attempt < MAX_ATTEMPTS else None
                if relaxed is None:
                    raise self._startup_error(failed, attempt) from None
                self.counts.retries += 1
                self.launch = self.launch.with_planned(relaxed.flags)
                self.report.event(
                    "retry", f"not enough memory ({failure.line[:200]}); trying again with {relaxed.change}",
                    cause=failure.cause.value, change=relaxed.change, attempt=attempt + 1, command=self.launch.line,
                )  # fmt: skip

    def _startup_error(self, failed: _StartFailed, attempts: int) -> StartupError | UsageError:
        failure = failed.failure
        tries = f" after {attempts} attempts" if attempts > 1 else ""
        message = f"{failed.message}{tries}: {failure.line[:300]}"
        kind = UsageError if failure.cause is Cause.FLAGS else StartupError
        return kind(message, failure.hint)

    async def _start(self, guard: Guard) -> None:
        """One attempt."""
        self.state, begin = State.STARTING, time.monotonic()
        self.launch.endpoint.check_free()
        self.run_dir.forget_pages()
        self.run_dir.write_plan(
            {**self.told, "plan": self.plan, "launched_at": time.time(), "restarts": self.counts.restarts,
             "retries": self.counts.retries}
        )  # fmt: skip
        environment = {**self.launch.environment, VARIABLE: str(self.run_dir.path)}
        self.actuals = Actuals()
        self.history.forget()
        self.server = server = await ServerProcess.start(self.launch.argv, environment, guard, self._on_log)
        self.report.event("started", f"started vLLM, process {server.pid}", pid=server.pid)
        while not await self._is_ready():
            await self._wait(server, READY_POLL)
            if self._first.is_set():
                raise _Interrupted
            if not server.alive:
                status = await server.kill()
                raise _StartFailed(classify(server.pump.tail, status), f"vLLM did not start ({status_words(status)})")
            if time.monotonic() - begin > self.options.startup_timeout:
                await server.kill()
                seconds = f"{self.options.startup_timeout:g} s (--startup-timeout)"
                raise StartupError(
                    f"vLLM was not ready after {seconds}", "allow more, or see in its log what it awaits"
                )
        self.ready_at = time.monotonic()
        self.load_seconds = self.ready_at - begin
        self.state = State.READY
        # Without its plugin vLLM tells no engine steps, and without those nothing is known of hangs.
        allowed = os.environ.get("VLLM_PLUGINS")
        self.watchdog = Watchdog(self.options, heartbeat=allowed is None or "vqp_metrics" in allowed.split(","))
        url = self.launch.endpoint.url
        model = self.probe.model or self.launch.model
        self.report.event("ready", f"ready after {self.load_seconds:.1f} s: {url}/v1, model {model}",
                          url=url, model=model, load_seconds=round(self.load_seconds, 3))  # fmt: skip

    def _on_log(self, line: str) -> None:
        """Called for each line of the server's log, on the log's thread."""
        if self.actuals.read(line):
            self.run_dir.write_actuals(self.actuals.known())

    async def _is_ready(self) -> bool:
        return self.launch.headless or await self.probe.ready()

    async def _wait(self, server: ServerProcess, seconds: float) -> None:
        """Until the server ends, a signal comes, or ``seconds`` have passed."""
        first = asyncio.ensure_future(self._first.wait())
        await asyncio.wait([server.exited, first], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        first.cancel()

    async def _back_off(self, died: EngineDiedError, used: int) -> None:
        """Wait before a restart; a signal meanwhile ends it all."""
        delay = min(self.options.backoff * 2**used, self.options.backoff_limit)
        self.state = State.RESTARTING
        self.counts.restarts += 1
        self.report.event("restart", f"{died.message}; restart {used + 1} of {self.options.restarts} in {delay:g} s",
                          reason=died.message, restart=used + 1)  # fmt: skip
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._first.wait(), delay)
            raise _Interrupted

    async def _abandon(self) -> int:
        """A signal came while no request could be in flight."""
        self.state = State.STOPPING
        number = self._signals[0]
        self.report.event("stopping", f"{signal.Signals(number).name} before it was ready: stopping", signal=number)
        await self._stop_server()
        return 128 + number

    # Watch -------------------------------------------------------------------

    async def _watch(self) -> None:
        """Return when a signal asks for a stop; raise EngineDiedError when the server dies or hangs."""
        assert self.server is not None
        assert self.watchdog is not None
        server, dog, check = self.server, self.watchdog, None
        while not self._first.is_set():
            await self._wait(server, HEALTH_POLL)
            if self._first.is_set():
                break
            if not server.alive:
                status = await server.kill()
                words = classify(server.pump.tail, status).line
                raise EngineDiedError(f"the server died ({status_words(status)})", f"its log says: {words[:300]}")
            if self.launch.headless:
                continue
            health, now = await self.probe.health(), time.monotonic()
            dog.observe(self.pages(), health, now)
            if dog.hung(now):
                await self._hung(dog.stalled(now))
            if dog.gone(now):
                await server.kill()
                raise EngineDiedError(f"the server stayed unhealthy: {dog.complaint}", "see its log above")
            if check is None or check.done():
                check = asyncio.ensure_future(dog.deep_check(self.probe)) if dog.deep_check_due(now) else None
            self._judge(dog)
        if check is not None:
            check.cancel()

    async def _hung(self, seconds: float) -> None:
        assert self.server is not None
        self.state = State.HUNG
        self.counts.hangs += 1
        self.report.event("hung", f"requests wait and the engine has made no step for {seconds:.0f} s: killing it",
                          seconds=round(seconds, 1))  # fmt: skip
        await self.server.kill()
        raise EngineDiedError(f"the engine hung for {seconds:.0f} s", "--hang-timeout sets how long a step may take")

    def _judge(self, dog: Watchdog) -> None:
        before, self.state = self.state, State.READY if dog.healthy else State.UNHEALTHY
        if self.state is before:
            return
        if self.state is State.READY:
            self.report.event("recovered", "the server is healthy again")
        else:
            self.report.event("unhealthy", f"the server is unhealthy: {dog.complaint}")

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
        number = self._signals[0]
        name, limit = signal.Signals(number).name, self.options.drain_timeout
        self.run_dir.set_draining(True)
        waiting = self.in_flight()
        self.report.event(
            "draining", f"{name}: refusing new requests, {waiting} in flight have {limit:g} s (again to force)",
            signal=name, in_flight=waiting,
        )  # fmt: skip
        deadline, quiet, left = time.monotonic() + limit, 0, waiting
        # Twice at zero: the flag and the count are two memory locations, and a request may just have passed.
        while quiet < 2 and time.monotonic() < deadline and not self._second.is_set() and self.server.alive:
            # A server that dies now takes the requests of the last look with it.
            left = self.in_flight() if self.server.alive else left
            quiet = quiet + 1 if left == 0 else 0
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._second.wait(), 0.1)
        self.state = State.STOPPING
        await self._stop_server()
        self.counts.drained("cut" if left else "clean")
        if self._second.is_set():
            number = self._signals[1]
            text = f"forced by a second {signal.Signals(number).name}, {left} requests cut"
        elif left:
            text = f"stopped; {left} requests were cut after {limit:g} s (--drain-timeout)"
        else:
            self.report.event("stopped", "stopped; every request in flight was answered", exit_code=0, cut=0)
            return 0
        self.report.event("stopped", text, exit_code=128 + number, cut=left)
        return 128 + number

    async def _stop_server(self) -> None:
        """vLLM's own shutdown, cut short by a second signal; then whatever is left is killed."""
        if self.server is None:
            return
        stop = asyncio.ensure_future(self.server.stop(self.options.stop_timeout))
        force = asyncio.ensure_future(self._second.wait())
        await asyncio.wait([stop, force], return_when=asyncio.FIRST_COMPLETED)
        force.cancel()
        if not stop.done():
            await self.server.kill()
        await stop


def status_words(status: int) -> str:
    """An exit status in words."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"
