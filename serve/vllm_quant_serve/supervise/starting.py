"""Bringing a server up: started until it is ready, again with smaller demands after memory failures."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from vllm_quant_plugin.errors import StartupError, UsageError
from vllm_quant_serve.supervise.actuals import Actuals
from vllm_quant_serve.supervise.failures import Cause, Failure, classify
from vllm_quant_serve.supervise.fallbacks import MAX_ATTEMPTS
from vllm_quant_serve.supervise.process import Guard, ServerProcess, status_words
from vllm_quant_serve.supervise.run_directory import VARIABLE
from vllm_quant_serve.supervise.state import State
from vllm_quant_serve.supervise.stopping import Interrupted

if TYPE_CHECKING:
    from vllm_quant_serve.supervise.session import Session

READY_POLL = 0.25
FIRST_TOKEN_TIMEOUT = 120.0


class _StartFailed(Exception):
    """One attempt to start failed."""

    def __init__(self, failure: Failure, message: str) -> None:
        self.failure, self.message = failure, message


async def bring_up(one: Session, guard: Guard) -> None:
    """Start until ready.

    Raises:
        Interrupted: a signal came first.
        UsageError: vLLM does not know one of the flags.
        StartupError: it did not become ready, and nothing that the planner chose can shrink.
    """
    for attempt in range(1, MAX_ATTEMPTS + 1):
        try:
            await _start(one, guard)
            return
        except _StartFailed as failed:
            failure = failed.failure
            one.counts.failed(failure.cause.value)
            fallback = one.fallbacks.step(failure) if one.fallbacks and attempt < MAX_ATTEMPTS else None
            if fallback is None:
                raise _startup_error(failed, attempt) from None
            one.counts.retries += 1
            one.launch = one.launch.with_planned(fallback.flags)
            one.report.event(
                "retry", f"not enough memory ({failure.line[:200]}); trying again with {fallback.change}",
                cause=failure.cause.value, change=fallback.change, attempt=attempt + 1, command=one.launch.line,
            )  # fmt: skip


def _startup_error(failed: _StartFailed, attempts: int) -> StartupError | UsageError:
    failure = failed.failure
    tries = f" after {attempts} attempts" if attempts > 1 else ""
    message = f"{failed.message}{tries}: {failure.line[:300]}"
    kind = UsageError if failure.cause is Cause.FLAGS else StartupError
    return kind(message, failure.hint)


async def _start(one: Session, guard: Guard) -> None:
    """One attempt."""
    one.state, begin = State.STARTING, time.monotonic()
    one.launch.endpoint.check_free()
    one.run_dir.forget_pages()
    one.run_dir.write_plan(
        {**one.told, "plan": one.plan, "launched_at": time.time(), "restarts": one.counts.restarts,
         "retries": one.counts.retries}
    )  # fmt: skip
    environment = {**one.launch.environment, VARIABLE: str(one.run_dir.path)}
    one.actuals = Actuals()
    one.history.forget()

    def on_log(line: str) -> None:
        # Called for each line of the server's log, on the log's thread.
        if one.actuals.read(line):
            one.run_dir.write_actuals(one.actuals.known())

    one.server = await ServerProcess.start(one.launch.argv, environment, guard, on_log)
    one.report.event("started", f"started vLLM, process {one.server.pid}", pid=one.server.pid)
    await _until_ready(one, one.server, begin)
    one.ready_at = time.monotonic()
    one.load_seconds = one.ready_at - begin
    one.state = State.READY
    url, model = one.launch.endpoint.url, one.probe.model or one.launch.model
    one.report.event("ready", f"ready after {one.load_seconds:.1f} s: {url}/v1, model {model}",
                     url=url, model=model, load_seconds=round(one.load_seconds, 3))  # fmt: skip


async def _until_ready(one: Session, server: ServerProcess, begin: float) -> None:
    check = asyncio.ensure_future(_is_ready(one))
    try:
        while not (check.done() and check.result()):
            if check.done():
                check = asyncio.ensure_future(_is_ready(one))
            await one.wait(READY_POLL)
            if one.signals.first.is_set():
                raise Interrupted
            if not server.alive:
                status = await server.kill()
                raise _StartFailed(classify(server.pump.tail, status), f"vLLM did not start ({status_words(status)})")
            if time.monotonic() - begin > one.options.startup_timeout:
                await server.kill()
                seconds = f"{one.options.startup_timeout:g} s (--startup-timeout)"
                hint = "allow more, or see in its log what it awaits"
                raise StartupError(f"vLLM was not ready after {seconds}", hint)
    finally:
        check.cancel()


async def _is_ready(one: Session) -> bool:
    """Loaded, and the engine generates a token; a model that completes no text is taken at its word."""
    if one.launch.headless:
        return True
    if not await one.probe.ready():
        return False
    return one.options.deep_check <= 0 or await one.probe.generates(FIRST_TOKEN_TIMEOUT) is not False
