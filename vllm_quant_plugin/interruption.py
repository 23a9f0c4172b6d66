"""Ctrl-C, SIGTERM and SIGHUP as an exception in the main thread, and an end within seconds where that cannot be raised.

Python runs signal handlers between two byte codes of the main thread, which an operator of minutes has none of. A
thread therefore reads the signals from a pipe as they arrive: after a second signal, or when the main thread has not
ended within ``GRACE``, it cleans up in the main thread's place and ends the process.

Whoever builds something that has to be cleaned up, or knows what is kept of a command that does not finish, runs inside
``leaving(describe)``.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

from vllm_quant_plugin import console

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Seconds that the main thread has to end in.
GRACE = 8.0
# Seconds until the terminal says that the present step is waited for.
_PATIENCE = 1.5


@dataclass(frozen=True)
class Kept:
    """What an interrupted command leaves.

    Attributes:
        what: is kept, as the beginning of a sentence: ``3 finished layers are kept in out/.model.resume``.
        then: a command, with the words before it: ``resume with: vllm-quant ...``.
    """

    what: str
    then: str


class Interrupted(BaseException):
    """A signal asks the command to end; not an ``Exception``, so that nothing takes it for a failure.

    Attributes:
        number: of the signal.
        kept: what is kept, None while nobody has said.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
        self.kept: Kept | None = None

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as a shell reports a process that it ended."""
        return 128 + self.number


Describe = Callable[[], Kept | None]
_leaving: list[Describe] = []
_words: list[str] = []
_deferring: list[None] = []
_pending: list[int] = []
# The first signal of the present command.
_raised: list[int] = []


def set_command(words: list[str]) -> None:
    """Note the words of the command line, without the program's name."""
    _words[:] = words


def command_line(*more: str) -> str:
    """What was typed, to be pasted into the same shell, with the words ``more`` where they are missing.

    Empty when the work was not started from the command line.
    """
    import shlex
    import shutil

    if not _words:
        return ""
    program = [sys.argv[0]]
    if sys.argv[0].endswith("__main__.py"):
        program = [sys.executable, "-m", "vllm_quant_plugin"]
    elif (found := shutil.which("vllm-quant")) and os.path.realpath(found) == os.path.realpath(sys.argv[0]):
        program = ["vllm-quant"]
    return shlex.join([*program, *_words, *(word for word in more if word not in _words)])


@contextmanager
def leaving(describe: Describe) -> Iterator[None]:
    """During the block, ``describe`` is called when a signal ends the command: it cleans up and says what is kept.

    Of several blocks the innermost that says something wins. ``describe`` may be called in another thread while the
    block goes on, and twice.
    """
    _leaving.append(describe)
    try:
        yield
    except BaseException as error:
        stop = interrupted_by(error)
        if stop is None:
            raise
        said = describe()
        stop.kept = stop.kept or said
        raise stop from None
    finally:
        _leaving.remove(describe)


def interrupted_by(error: BaseException) -> Interrupted | None:
    """The interruption behind an exception, None where it has another cause.

    A library may put an error of its own in the place of the one that a signal has raised within it, as safetensors'
    Rust code does.
    """
    if isinstance(error, Interrupted):
        return error
    return Interrupted(_raised[0]) if _raised and not isinstance(error, SystemExit) else None


@contextmanager
def deferred() -> Iterator[None]:
    """A signal that arrives during the block, which must be short, is raised at its end."""
    _deferring.append(None)
    try:
        yield
    finally:
        _deferring.pop()
    if _pending and not _deferring:
        raise Interrupted(_pending.pop())


def message(number: int, kept: Kept | None) -> tuple[str, str]:
    """What is said at the end: what is kept, and how to go on."""
    if kept is None:
        again = command_line()
        kept = Kept("nothing is kept", f"start over with: {again}" if again else "start over")
    name = "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"
    return f"{name}: {kept.what}", kept.then


def end_children() -> None:
    """Kill every process that descends from this one."""
    import psutil

    with suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                child.kill()


def _end_now(number: int) -> None:
    """Clean up in the main thread's place and end the process."""
    end_children()
    kept: Kept | None = None
    for describe in reversed(_leaving):
        with suppress(Exception):
            kept = kept or describe()
    console.say("; ".join(message(number, kept)))
    console.discard_log()
    os._exit(128 + number)


def _watch(pipe: int) -> None:
    """Read the signals' numbers from ``pipe`` until it is closed."""
    number, deadline, told = 0, float("inf"), False
    while True:
        now = time.monotonic()
        wait = max(0.0, (deadline if told else deadline - GRACE + _PATIENCE) - now) if number else None
        ready = select.select([pipe], [], [], wait)[0]
        if not ready:
            if time.monotonic() >= deadline:
                _end_now(number)
            told = True
            console.say("ending; a second signal ends at once")
            continue
        data = os.read(pipe, 64)
        if not data:
            return
        for found in (n for n in data if n in SIGNALS):
            if number:
                _end_now(found)
            number, deadline = found, time.monotonic() + GRACE


@contextmanager
def signals_raise() -> Iterator[None]:
    """During the block the first of ``SIGNALS`` raises ``Interrupted`` in the main thread, a second ends the process.

    Signals that are ignored (``nohup``, background jobs of a script) stay so. Does nothing outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _raised.clear()

    def handle(number: int, _frame: FrameType | None) -> None:
        if _raised:
            return
        _raised.append(number)
        if _deferring:
            _pending.append(number)
            return
        raise Interrupted(number)

    before: dict[int, Any] = {n: signal.getsignal(n) for n in SIGNALS}
    taken = [n for n in SIGNALS if before[n] != signal.SIG_IGN]
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    watcher = threading.Thread(target=_watch, args=(read_end,), daemon=True, name="signals")
    watcher.start()
    old_pipe = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    for number in taken:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, before[number])
        signal.set_wakeup_fd(old_pipe)
        os.close(write_end)
        watcher.join(1.0)
        _raised.clear()
        os.close(read_end)
