"""Signals before a session runs: while the model is read, planned for and checked, the launcher ends at once.

Nothing is lost then. Python's own handlers run between two bytecodes of the main thread, hence not while it waits in a
C call (a name look-up, a driver), and as process 1 of a container a process without a handler is never ended by
SIGTERM. So a thread waits for the number that the C part of each handler writes to a pipe, and ends the process from
there.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType

from vllm_quant_serve.supervise.signals import SIGNALS


def _ignore(number: int, frame: FrameType | None) -> None:
    """Python needs a handler, or it writes no number to the pipe."""


class EarlyStop:
    """Ends the process and its children on a signal, while its ``with`` block runs and no event loop has taken over."""

    def __enter__(self) -> EarlyStop:
        self._active = threading.current_thread() is threading.main_thread()
        if self._active:
            reading, writing = os.pipe()
            os.set_blocking(writing, False)
            self._handlers = {number: signal.signal(number, _ignore) for number in SIGNALS}
            self._writing = writing
            self._fd = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
            threading.Thread(target=_wait, args=(reading,), name="early-stop", daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        if not self._active:
            return
        signal.set_wakeup_fd(self._fd)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        os.close(self._writing)


def _wait(reading: int) -> None:
    while data := os.read(reading, 1):
        if data[0] in SIGNALS:
            _leave(signal.Signals(data[0]))
    os.close(reading)


def _leave(number: signal.Signals) -> None:
    import psutil

    with contextlib.suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
    with contextlib.suppress(OSError):
        os.write(2, f"{number.name} before anything was started\n".encode())
    os._exit(128 + number)
