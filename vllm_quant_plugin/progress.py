"""A progress bar that says in words how long it has taken and how long it will, also within long steps."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.text import Text

# The pace is that of the last half of the time, and of no less than this many seconds.
_WINDOW = 20.0


class Remaining:
    """How long a task will still take, from what it has taken.

    The pace is the recent one, so that a machine that becomes busy is noticed; between two reports the time runs down.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, float]] = deque()
        self._total = 0.0

    def update(self, done: float, total: float) -> None:
        """The task has come to ``done`` of ``total``; the first call says where it began."""
        now = self._clock()
        if self._seen and done < self._seen[-1][1]:
            # Another task under the same bar.
            self._seen.clear()
        self._total = total
        self._seen.append((now, done))
        horizon = now - max(_WINDOW, (now - self._seen[0][0]) / 2)
        while len(self._seen) > 2 and self._seen[1][0] <= horizon:
            self._seen.popleft()

    def seconds(self) -> float | None:
        """Seconds to the end; None where nothing is done yet."""
        if len(self._seen) < 2:
            return None
        (begun, before), (last, done) = self._seen[0], self._seen[-1]
        if done <= before or last <= begun:
            return None
        left = (self._total - done) * (last - begun) / (done - before)
        return max(0.0, left - (self._clock() - last))


def in_words(seconds: float) -> str:
    """A duration as people read it: ``48 s``, ``3 min 20 s``, ``25 min``, ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


class _Times(ProgressColumn):
    def render(self, task: Task) -> Text:
        words = f"{in_words(task.elapsed or 0.0)} elapsed"
        left = task.fields["remaining"].seconds()
        if left is not None:
            words += f", {in_words(left)} remaining" if left >= 1 else ", nearly done"
        return Text(words)


class _Count(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("" if not task.total else f"{int(task.completed)}/{int(task.total)}")


class _TwoLines(Progress):
    """The bar, and below it what is being done."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            yield Text(f"    {task.fields['what']}", style="dim", no_wrap=True, overflow="ellipsis")


@contextmanager
def bar(title: str) -> Iterator[Callable[[str, float, float], None]]:
    """A bar on the terminal behind descriptor 2; yields the function that moves it."""
    # A descriptor of its own: libraries' output is sent elsewhere by moving descriptors 1 and 2.
    with os.fdopen(os.dup(2), "w") as terminal:
        columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=18), _Count(), _Times()
        remaining = Remaining()
        with _TwoLines(
            *columns, console=Console(file=terminal), transient=True, refresh_per_second=4, redirect_stdout=False,
            redirect_stderr=False,
        ) as bars:  # fmt: skip
            task: TaskID = bars.add_task(title, total=None, what="starting", remaining=remaining)

            def move(what: str, done: float, total: float) -> None:
                remaining.update(done, total)
                bars.update(task, completed=done, total=total or None, what=what)

            yield move
