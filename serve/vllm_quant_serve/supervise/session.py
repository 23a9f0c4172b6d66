"""``Session``: one served model, from the first start until nothing of it is left.

The session stands beside the request path, never in it. ``Session.run`` is its whole life:

    start (again with smaller memory demands) -> ready -> monitor -> drain on a signal
      ^                                                     |
      +--------------- back off, restart <------------------+  the server died or hung

Whatever way it ends, every process that it started has ended too: see ``guard.py``.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any

from vllm_quant_plugin import console
from vllm_quant_plugin.errors import EngineDiedError
from vllm_quant_serve.launch import Launch
from vllm_quant_serve.supervise.actuals import Actuals
from vllm_quant_serve.supervise.drain import Drain, describe
from vllm_quant_serve.supervise.failures import classify, message_of
from vllm_quant_serve.supervise.fallbacks import MAX_ATTEMPTS, MemoryFallbacks
from vllm_quant_serve.supervise.guard import in_process_session
from vllm_quant_serve.supervise.history import History
from vllm_quant_serve.supervise.options import SuperviseOptions
from vllm_quant_serve.supervise.probe import Probe
from vllm_quant_serve.supervise.process import Guard, ServerProcess, become_subreaper, describe_status
from vllm_quant_serve.supervise.report import Report
from vllm_quant_serve.supervise.restart import RestartBudget
from vllm_quant_serve.supervise.run_directory import VARIABLE, RunDirectory, ServerPage
from vllm_quant_serve.supervise.signals import Interrupted, StopSignals
from vllm_quant_serve.supervise.start_log import STDERR, start_log
from vllm_quant_serve.supervise.startup import StartFailed, wait_until_ready
from vllm_quant_serve.supervise.state import Counts, State
from vllm_quant_serve.supervise.watchdog import Watchdog, reports_engine_steps

HEALTH_POLL = 1.0


class Session:
    """One served model and everything it holds. ``run`` returns the exit code or raises the VqpError that has it.

    Attributes:
        launch: what is started; memory fallbacks replace its planned flags.
        plan: the plan in its JSON form; None when launched without one.
        metadata: handed to the stat logger beside the plan: peaks, objectives, price.
        server: the running server, or the last one; None before the first start.
        actuals: memory figures in the running server's log.
        load_seconds: from the last launch until ready; None before the first ready.
        ready_at: monotonic time at which the server last became ready.
    """

    def __init__(
        self,
        launch: Launch,
        run_dir: RunDirectory,
        report: Report,
        options: SuperviseOptions,
        plan: dict[str, Any] | None = None,
        fallbacks: MemoryFallbacks | None = None,
        metadata: Mapping[str, Any] | None = None,
        on_first_ready: Callable[[Session], Coroutine[Any, Any, None]] | None = None,
        *,
        quiet: bool = False,
    ) -> None:
        """
        Args:
            on_first_ready: runs beside the monitoring, once, and must not raise.
            quiet: what the server prints while it starts goes to a log file, not to stderr.
        """
        self.launch, self.run_dir, self.report, self.options = launch, run_dir, report, options
        self.plan, self.fallbacks, self.metadata = plan, fallbacks, dict(metadata or {})
        self.state = State.STARTING
        self.counts = Counts()
        self.server: ServerProcess | None = None
        self.probe = Probe(launch, token=run_dir.path.name.encode())
        self.actuals = Actuals()
        self.history = History()
        self.load_seconds: float | None = None
        self.ready_at: float | None = None
        self.signals = StopSignals()
        self._quiet = quiet
        self._on_first_ready = on_first_ready
        self._first_ready: asyncio.Task[None] | None = None

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
        sampling = asyncio.ensure_future(self.history.follow(self.probe))
        with self.signals:
            try:
                return await self._serve(guard)
            except Interrupted:
                return await self._abandon()
            finally:
                if self.server is not None and self.server.leftovers():
                    await self.server.kill()
                self.state = State.STOPPED
                sampling.cancel()
                if self._first_ready is not None:
                    await self._first_ready
                await self.probe.close()
                guard.close()
                self.run_dir.remove()

    async def _serve(self, guard: Guard) -> int:
        restarts = RestartBudget(self.options)
        while True:
            await self._start(guard)
            if self._on_first_ready is not None and self._first_ready is None:
                self._first_ready = asyncio.create_task(self._on_first_ready(self))
            try:
                await self._monitor()
                return await self._drain()
            except EngineDiedError as died:
                served = time.monotonic() - self.ready_at if self.ready_at is not None else 0.0
                delay = restarts.next_delay(served)
                if delay is None:
                    raise
                await self._back_off(died, delay, restarts.used)

    # ---- start ----------------------------------------------------------------

    async def _start(self, guard: Guard) -> None:
        """Start until ready, after memory failures again with less of what the planner chose.

        Raises:
            Interrupted: a signal came first.
            UsageError: vLLM does not know one of the flags.
            StartupError: it did not become ready, and nothing that the planner chose can shrink.
        """
        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                await self._attempt_start(guard)
                return
            except StartFailed as failed:
                failure = failed.failure
                self.counts.failed(failure.cause.value)
                fallback = self.fallbacks.step(failure) if self.fallbacks and attempt < MAX_ATTEMPTS else None
                if fallback is None:
                    raise failed.final(attempt) from None
                self.counts.retries += 1
                self.launch = self.launch.with_planned(fallback.flags)
                self.report.event(
                    "retry", f"not enough memory ({failure.line[:200]}); trying again with {fallback.change}",
                    cause=failure.cause.value, change=fallback.change, attempt=attempt + 1, command=self.launch.line,
                )  # fmt: skip

    async def _attempt_start(self, guard: Guard) -> None:
        self.state, begin = State.STARTING, time.monotonic()
        self.launch.endpoint.check_free()
        self.run_dir.forget_server()
        self.run_dir.write_metadata(
            {**self.metadata, "plan": self.plan, "launched_at": time.time(), "restarts": self.counts.restarts,
             "retries": self.counts.retries}
        )  # fmt: skip
        self.history.forget()
        actuals = self.actuals = Actuals()

        with start_log(hidden=self._quiet, shown=not self.report.as_json) as log:

            def on_log(line: str) -> None:
                # Called for each line of the server's log, on the log's thread.
                log.tell(message_of(line))
                if actuals.read(line):
                    self.run_dir.write_actuals(actuals.known())

            environment = {**self.launch.environment, VARIABLE: str(self.run_dir.path)}
            server = self.server = await ServerProcess.start(
                self.launch.argv, environment, guard, on_log, log.descriptor
            )
            self.report.event("started", f"started vLLM, process {server.pid}", pid=server.pid)
            await wait_until_ready(server, self.launch, self.probe, self.options, self.signals)
            server.pump.redirect(STDERR)
        self.ready_at = time.monotonic()
        self.load_seconds = self.ready_at - begin
        self.state = State.READY
        url, model = self.launch.endpoint.url, self.probe.model or self.launch.model
        self.report.event("ready", f"ready after {self.load_seconds:.1f} s: {url}/v1, model {model}",
                          url=url, model=model, load_seconds=round(self.load_seconds, 3))  # fmt: skip

    # ---- monitor, restart -----------------------------------------------------

    async def _monitor(self) -> None:
        """Return when a signal asks for a stop.

        Raises:
            EngineDiedError: the server died or hung; nothing of it is left.
        """
        assert self.server is not None
        server, deep_check = self.server, None
        watchdog = Watchdog(self.options, heartbeat=reports_engine_steps())
        try:
            while not self.signals.first.is_set():
                await self.signals.wait_or(server.exited, HEALTH_POLL)
                if self.signals.first.is_set():
                    return
                if not server.alive:
                    status = await server.kill()
                    log = classify(server.pump.tail, status).line[:300]
                    raise EngineDiedError(f"the server died ({describe_status(status)})", f"its log says: {log}")
                if self.launch.headless:
                    continue
                health, now = await self.probe.health(), time.monotonic()
                watchdog.observe(self.pages(), health, now)
                if watchdog.hung(now):
                    await self._kill_hung(server, watchdog.stalled(now))
                if watchdog.lost(now):
                    await server.kill()
                    raise EngineDiedError(f"the server stayed unhealthy: {watchdog.complaint}", "see its log above")
                if deep_check is None or deep_check.done():
                    due = watchdog.deep_check_due(now)
                    deep_check = asyncio.ensure_future(watchdog.deep_check(self.probe)) if due else None
                self._set_health(watchdog)
        finally:
            if deep_check is not None:
                deep_check.cancel()

    async def _kill_hung(self, server: ServerProcess, seconds: float) -> None:
        self.state = State.HUNG
        self.counts.hangs += 1
        self.report.event("hung", f"requests wait and the engine has made no step for {seconds:.0f} s; killing it",
                          seconds=round(seconds, 1))  # fmt: skip
        await server.kill()
        raise EngineDiedError(f"the engine hung for {seconds:.0f} s", "--hang-timeout sets how long a step may take")

    def _set_health(self, watchdog: Watchdog) -> None:
        before, self.state = self.state, State.READY if watchdog.healthy else State.UNHEALTHY
        if self.state is before:
            return
        if self.state is State.READY:
            self.report.event("recovered", "the server is healthy again")
        else:
            self.report.event("unhealthy", f"the server is unhealthy: {watchdog.complaint}")

    async def _back_off(self, died: EngineDiedError, delay: float, number: int) -> None:
        """Wait before a restart; a signal meanwhile ends the session."""
        self.state = State.RESTARTING
        self.counts.restarts += 1
        self.report.event("restart", f"{died.message}; restart {number} of {self.options.restarts} in {delay:g} s",
                          reason=died.message, restart=number)  # fmt: skip
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.signals.first.wait(), delay)
            raise Interrupted

    # ---- end ------------------------------------------------------------------

    async def _drain(self) -> int:
        """Let the requests in flight finish, refuse later ones, stop the server; the exit code."""
        assert self.server is not None

        server = self.server

        def stopping() -> None:
            self.state = State.STOPPING
            if self._quiet:
                # No request is left: what vLLM says of its own end is noise again.
                server.pump.redirect(console.open_log())

        self.state = State.DRAINING
        drain = Drain(self.server, self.run_dir, self.probe, self.signals, self.options, self.report)
        drained = await drain.run(stopping)
        self.counts.drained("cut" if drained.cut else "clean")
        code, text = describe(drained, self.signals, self.options)
        self.report.event("stopped", text, exit_code=code, answered=drained.answered, cut=drained.cut,
                          refused=drained.refused)  # fmt: skip
        return code

    async def _abandon(self) -> int:
        """Stop a server that is not ready, hence without requests; the exit code."""
        self.state = State.STOPPING
        number = self.signals.numbers[0]
        self.report.event("stopping", f"{signal.Signals(number).name} before it was ready: stopping", signal=number)
        if self.server is not None:
            await self.server.stop(self.options.stop_timeout, force=self.signals.second)
        return 128 + number

    # ---- what others read -----------------------------------------------------

    def pages(self) -> list[ServerPage]:
        """The pages of the live API servers."""
        if self.server is None:
            return []
        # Only each page's process is looked up: scrapes and the drain ask often, and a host may have many processes.
        return [page for page in self.run_dir.pages() if in_process_session(page.pid, self.server.pid)]

    def in_flight(self) -> int:
        """Requests that the API servers are answering."""
        return sum(page.in_flight for page in self.pages())
