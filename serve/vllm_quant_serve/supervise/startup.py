"""One attempt to start: waiting until the server serves, and why it did not."""

from __future__ import annotations

import asyncio
import time

from vllm_quant_plugin.errors import StartupError, UsageError
from vllm_quant_serve.launch import Launch
from vllm_quant_serve.supervise.failures import Cause, Failure, classify
from vllm_quant_serve.supervise.options import SuperviseOptions
from vllm_quant_serve.supervise.probe import Probe
from vllm_quant_serve.supervise.process import ServerProcess, describe_status
from vllm_quant_serve.supervise.signals import Interrupted, StopSignals

READY_POLL = 0.25


class StartFailed(Exception):
    """The server ended before it was ready; its log says why."""

    def __init__(self, failure: Failure, message: str) -> None:
        self.failure, self.message = failure, message

    def final(self, attempts: int) -> StartupError | UsageError:
        """The error for the user after ``attempts`` attempts."""
        tries = f" after {attempts} attempts" if attempts > 1 else ""
        kind = UsageError if self.failure.cause is Cause.FLAGS else StartupError
        return kind(f"{self.message}{tries}: {self.failure.line[:300]}", self.failure.hint)


async def wait_until_ready(
    server: ServerProcess, launch: Launch, probe: Probe, options: SuperviseOptions, signals: StopSignals
) -> None:
    """Return once the server serves. A headless one counts as ready while it lives.

    Raises:
        Interrupted: a signal came first.
        StartFailed: the server ended; nothing of it is left.
        StartupError: it was not ready within the start-up timeout; nothing of it is left.
    """
    begin = time.monotonic()

    async def is_ready() -> bool:
        return launch.headless or await probe.serving(generate=options.deep_check > 0)

    check = asyncio.ensure_future(is_ready())
    try:
        while not (check.done() and check.result()):
            if check.done():
                check = asyncio.ensure_future(is_ready())
            await signals.wait_or(server.exited, READY_POLL)
            if signals.first.is_set():
                raise Interrupted
            if not server.alive:
                status = await server.kill()
                raise StartFailed(classify(server.pump.tail, status), f"vLLM did not start ({describe_status(status)})")
            if time.monotonic() - begin > options.startup_timeout:
                await server.kill()
                raise StartupError(
                    f"vLLM was not ready after {options.startup_timeout:g} s (--startup-timeout)",
                    "raise the timeout, or look in its log for what it is waiting for",
                )
    finally:
        check.cancel()
