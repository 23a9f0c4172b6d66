"""Where vLLM's log goes while it starts: to a file that is named when the start fails; from ready on to stderr.

vLLM prints a hundred lines before it serves, none of which an operator acts on. Once it serves, a line is news. A
terminal shows meanwhile how long it has taken and the last line.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from vllm_quant_plugin import console

STDERR = 2


@dataclass(frozen=True)
class StartLog:
    """One start's log.

    Attributes:
        descriptor: where the server's output is to be copied.
        tell: takes each line of it, for the terminal.
    """

    descriptor: int
    tell: Callable[[str], None]


def _ignore(line: str) -> None:
    """Nobody watches."""


@contextmanager
def start_log(*, hidden: bool, shown: bool) -> Iterator[StartLog]:
    """The log of a start, which is the block. An exception in it keeps the file, its absence deletes it.

    Args:
        hidden: the output goes to the file; else to stderr all the time.
        shown: a terminal may show how the start goes on.
    """
    if not hidden:
        yield StartLog(STDERR, _ignore)
        return
    descriptor = console.open_log()
    try:
        with console.progress_bar("starting vLLM", enabled=shown) as progress:
            yield StartLog(descriptor, lambda line: progress(line, 0, 0))
    except BaseException:
        console.mark_failed()
        raise
    finally:
        os.close(descriptor)
    console.discard_log()
