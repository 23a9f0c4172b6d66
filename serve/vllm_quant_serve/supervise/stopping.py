"""The end of a server: drained after a first signal, forced by a second, stopped when it was not ready yet."""

from __future__ import annotations

import asyncio
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from vllm_quant_serve.supervise.state import State

if TYPE_CHECKING:
    from vllm_quant_serve.supervise.session import Session

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
DRAIN_POLL = 0.1


class Interrupted(Exception):
    """A signal arrived before the server was ready."""


class StopSignals:
    """The signals that came: the first asks for a drain, the second forces."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.first, self.second = asyncio.Event(), asyncio.Event()

    def on_signal(self, number: int) -> None:
        self.numbers.append(number)
        (self.second if self.first.is_set() else self.first).set()

    def __enter__(self) -> StopSignals:
        for number in SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self.on_signal, number)
        return self

    def __exit__(self, *exc: object) -> None:
        for number in SIGNALS:
            asyncio.get_running_loop().remove_signal_handler(number)


async def drain(one: Session) -> int:
    """Refuse new requests, let those in flight finish, stop the server; the exit code."""
    assert one.server is not None
    one.state = State.DRAINING
    signals, limit = one.signals, one.options.drain_timeout
    number = signals.numbers[0]
    one.run_dir.set_draining(True)
    left = one.in_flight()
    name = signal.Signals(number).name
    one.report.event(
        "draining", f"{name}: refusing new requests, {left} in flight have {limit:g} s (again to force)",
        signal=name, in_flight=left,
    )  # fmt: skip
    deadline, quiet = time.monotonic() + limit, 0
    # Twice at zero: the flag and the count are two memory locations, and a request may just have passed.
    while quiet < 2 and time.monotonic() < deadline and not signals.second.is_set() and one.server.alive:
        # A server that dies now takes the requests of the last look with it.
        left = one.in_flight() if one.server.alive else left
        quiet = quiet + 1 if left == 0 else 0
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(signals.second.wait(), DRAIN_POLL)
    one.state = State.STOPPING
    await stop_server(one)
    one.counts.drained("cut" if left else "clean")
    if signals.second.is_set():
        number = signals.numbers[1]
        text = f"forced by a second {signal.Signals(number).name}, {left} requests cut"
    elif left:
        text = f"stopped; {left} requests were cut after {limit:g} s (--drain-timeout)"
    else:
        one.report.event("stopped", "stopped; every request in flight was answered", exit_code=0, cut=0)
        return 0
    one.report.event("stopped", text, exit_code=128 + number, cut=left)
    return 128 + number


async def abandon(one: Session) -> int:
    """A signal came while no request could be in flight; the exit code."""
    one.state = State.STOPPING
    number = one.signals.numbers[0]
    one.report.event("stopping", f"{signal.Signals(number).name} before it was ready: stopping", signal=number)
    await stop_server(one)
    return 128 + number


async def stop_server(one: Session) -> None:
    """vLLM's own shutdown, cut short by a second signal; then whatever is left is killed."""
    if one.server is None:
        return
    stop = asyncio.ensure_future(one.server.stop(one.options.stop_timeout))
    force = asyncio.ensure_future(one.signals.second.wait())
    await asyncio.wait([stop, force], return_when=asyncio.FIRST_COMPLETED)
    force.cancel()
    if not stop.done():
        await one.server.kill()
    await stop
