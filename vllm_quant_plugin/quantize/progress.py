"""A rich progress bar with time left on a terminal, silence elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str, int, int], None]


def no_progress(what: str, done: int, total: int) -> None:
    """Reports nothing."""


@contextmanager
def progress_bar(title: str, *, enabled: bool = True) -> Iterator[Progress]:
    """A function ``(what, done, total)`` that moves a bar on stderr, while the block runs."""
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
