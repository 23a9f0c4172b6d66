"""The terminal: what a command prints while it works, and no output of libraries among it."""

from __future__ import annotations

import atexit
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from vllm_quant_kernels import env

# (what is being done, done, total): ``done`` may have a fraction, which says how far the present step has come.
Progress = Callable[[str, float, float], None]


def no_progress(what: str, done: float, total: float) -> None:
    """Reports nothing."""


@dataclass
class _Session:
    """The process's output.

    Attributes:
        verbose: libraries write to the terminal.
        log: what libraries wrote; made when it is first needed.
        failed: a block in which libraries wrote there ended with an exception.
        terminal: a copy of descriptor 2 while that leads into the log.
    """

    verbose: bool = False
    log: Path | None = None
    failed: bool = False
    terminal: int | None = None


_session = _Session()


def _show(value: bool) -> bool:
    _session.verbose = value or env.switch("VQP_VERBOSE")
    return value


Verbose = Annotated[
    bool, typer.Option("--verbose", callback=_show, help="Show what libraries and vLLM print, on stderr.")
]


def say(line: str) -> None:
    """A line on the terminal's stderr, also from another thread and while libraries' output goes elsewhere."""
    terminal = 2 if _session.terminal is None else _session.terminal
    # What a bar has drawn on this line is overwritten.
    begin = "\r\033[K" if os.isatty(terminal) else ""
    with suppress(OSError):
        os.write(terminal, f"{begin}{line}\n".encode())


@contextmanager
def progress_bar(title: str, *, enabled: bool = True) -> Iterator[Progress]:
    """A function ``(what, done, total)`` that moves a bar on stderr while the block runs; silent without a terminal."""
    if not enabled or not sys.stderr.isatty():
        yield no_progress
    elif is_verbose():
        yield _lines(title)
    else:
        from vllm_quant_plugin.progress import bar

        with bar(title) as progress:
            yield progress


def _lines(title: str) -> Progress:
    """Plain lines, which other output may come between: one for each whole step."""
    last = [-1]

    def progress(what: str, done: float, total: float) -> None:
        if int(done) != last[0]:
            last[0] = int(done)
            say(f"{title}: {int(done)} of {int(total)}, {what}")

    return progress


def is_verbose() -> bool:
    """Whether libraries' output belongs on the terminal (``--verbose``, ``VQP_VERBOSE``)."""
    return _session.verbose or env.switch("VQP_VERBOSE")


def mark_failed() -> None:
    """Keep what is in the log now: what wrote there has failed."""
    _session.failed = True


def open_log() -> int:
    """A descriptor of the log, for appending."""
    try:
        if _session.log is None:
            descriptor, name = tempfile.mkstemp(prefix="vllm-quant-", suffix=".log")
            os.close(descriptor)
            _session.log = Path(name)
            atexit.register(discard_log)
        return os.open(_session.log, os.O_WRONLY | os.O_APPEND)
    except OSError:
        return os.open(os.devnull, os.O_WRONLY)


def discard_log() -> None:
    """Delete the log."""
    if _session.log is not None:
        _session.log.unlink(missing_ok=True)
    _session.log, _session.failed = None, False


def keep_log() -> Path | None:
    """The log of a block that failed, which then stays; None where libraries wrote nothing, or nothing failed."""
    log = _session.log
    if log is None or not _session.failed or not log.exists() or not log.stat().st_size:
        return None
    _session.log = None
    return log


@contextmanager
def suppress_output() -> Iterator[None]:
    """Send file descriptors 1 and 2 to the log during the block, or both to stderr with ``--verbose``."""
    sys.stdout.flush()
    sys.stderr.flush()
    if _session.terminal is not None:
        # Within another such block.
        yield
        return
    saved = os.dup(1), os.dup(2)
    if is_verbose():
        target = os.dup(2)
    else:
        target = open_log()
        _session.terminal = saved[1]
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.close(target)
    try:
        yield
    except BaseException:
        _session.failed = True
        raise
    finally:
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        _session.terminal = None
        for fd, copy in zip((1, 2), saved, strict=True):
            os.dup2(copy, fd)
            os.close(copy)
