"""The terminal: a progress bar on it, and no output of libraries on it or in ``--json``."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vllm_quant_kernels import env

Progress = Callable[[str, int, int], None]


def no_progress(what: str, done: int, total: int) -> None:
    """Reports nothing."""


@contextmanager
def progress_bar(title: str, *, enabled: bool = True) -> Iterator[Progress]:
    """A function ``(what, done, total)`` that moves a bar on stderr while the block runs; silent without a terminal."""
    if not enabled or not sys.stderr.isatty():
        yield no_progress
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("[dim]{task.fields[what]}"),
    )  # fmt: skip
    # A descriptor of its own: libraries' chatter is sent elsewhere by moving descriptors 1 and 2.
    with (
        os.fdopen(os.dup(2), "w") as terminal,
        Bars(*columns, console=Console(file=terminal), transient=True) as bars,
    ):
        task = bars.add_task(title, total=None, what="")
        yield lambda what, done, total: bars.update(task, completed=done, total=total, what=what)


@contextmanager
def suppress_output() -> Iterator[None]:
    """Send file descriptors 1 and 2 to a temporary file during the block.

    With ``VQP_VERBOSE`` set, that file is shown on stderr when the block fails.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        failed = True
        try:
            yield
            failed = False
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for fd, copy in zip((1, 2), saved, strict=True):
                os.dup2(copy, fd)
                os.close(copy)
            if failed and env.switch("VQP_VERBOSE"):
                log.seek(0)
                sys.stderr.write(log.read().decode(errors="replace"))
