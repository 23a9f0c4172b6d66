"""One attempt to start: waiting until the server serves, and why it did not."""

from __future__ import annotations

import asyncio
import time

from vllm_quant_plugin.errors import StartupError, UsageError
from vllm_quant_serve.launch import Launch
from vllm_quant_serve.supervise.failures import Failure, classify
from vllm_quant_serve.supervise.listeners import held_inodes, holder_of, listening_inodes
from vllm_quant_serve.supervise.options import SuperviseOptions
from vllm_quant_serve.supervise.probe import Probe
from vllm_quant_serve.supervise.process import ServerProcess, describe_status
from vllm_quant_serve.supervise.signals import Interrupted, StopSignals

READY_POLL = 0.25


LONGEST = 300


def shortened(text: str) -> str:
    """``text``, where it is long up to the end of a sentence or at least of a word."""
    if len(text) <= LONGEST:
        return text
    head = text[:LONGEST]
    sentence = head.rfind(". ")
    return head[:sentence] if sentence > 40 else f"{head.rpartition(' ')[0]} ..."


class StartFailed(Exception):
    """The server ended before it was ready; its log says why."""

    def __init__(self, failure: Failure, message: str) -> None:
        self.failure, self.message = failure, message

    def final(self, attempts: int) -> StartupError | UsageError:
        """The error for the user after ``attempts`` attempts."""
        tries = f" after {attempts} attempts" if attempts > 1 else ""
        kind = UsageError if self.failure.cause.is_usage else StartupError
        return kind(f"{self.message}{tries}: {shortened(self.failure.line)}", self.failure.hint)


def _listens(server: ServerProcess, launch: Launch) -> bool:
    """Whether the server listens at its address, and nobody else does."""
    found = listening_inodes(launch.endpoint)
    return bool(found) and found <= held_inodes(server.leftovers())


def _stranger(server: ServerProcess, launch: Launch) -> str | None:
    """Who else listens at the server's address, as holder_of names it; None when nobody does."""
    found = listening_inodes(launch.endpoint)
    strangers = found - held_inodes(server.leftovers()) if found else found
    # The server may have opened it between the two readings, or have closed it.
    strangers &= listening_inodes(launch.endpoint) - held_inodes(server.leftovers()) if strangers else strangers
    return holder_of(strangers) if strangers else None


async def wait_until_ready(
    server: ServerProcess, launch: Launch, probe: Probe, options: SuperviseOptions, signals: StopSignals
) -> None:
    """Return once the server serves. A headless one counts as ready while it lives.

    Raises:
        Interrupted: a signal came first.
        StartFailed: the server ended; nothing of it is left.
        StartupError: it was not ready within the start-up timeout, or another process listens at its address; nothing
            of it is left.
    """
    begin = time.monotonic()

    async def is_ready() -> bool:
        if launch.headless:
            return True
        # Not a request before the address is the own server's: another one would get the API key, and answer.
        if not _listens(server, launch):
            return False
        return await probe.serving(generate=options.deep_check > 0) and _listens(server, launch)

    check = asyncio.ensure_future(is_ready())
    try:
        while not (check.done() and check.result()):
            if not launch.headless and (stranger := _stranger(server, launch)) is not None and server.alive:
                await server.kill()
                raise StartupError(
                    f"{launch.endpoint.where} was taken{stranger} while the model was loading",
                    "stop that process, or choose another with --port",
                )
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
