"""The signals that stop a session: the first asks for a drain, the second forces the end."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Interrupted(Exception):
    """A signal arrived while no server was ready."""


class StopSignals:
    """Collects signals while its ``with`` block runs, in the running event loop.

    Attributes:
        numbers: the signals received, oldest first.
        first: set by the first signal.
        second: set by the second one.
    """

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.first, self.second = asyncio.Event(), asyncio.Event()

    def on_signal(self, number: int) -> None:
        self.numbers.append(number)
        (self.second if self.first.is_set() else self.first).set()

    async def wait_or(self, ended: asyncio.Future[int], seconds: float) -> None:
        """Until the first signal comes, ``ended`` is done, or ``seconds`` have passed."""
        first = asyncio.ensure_future(self.first.wait())
        either: list[asyncio.Future[Any]] = [ended, first]
        await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        first.cancel()

    def __enter__(self) -> StopSignals:
        for number in SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self.on_signal, number)
        return self

    def __exit__(self, *exc: object) -> None:
        for number in SIGNALS:
            asyncio.get_running_loop().remove_signal_handler(number)
