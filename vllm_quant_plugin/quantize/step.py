"""How far a long piece of work has come. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class Step:
    """A piece of work, or a part of one: what its parts report counts towards the whole.

    Args:
        report: called with the share of the whole that is done, 0 to 1.
        begin, end: which share of the whole this is.
    """

    def __init__(self, report: Callable[[float], None], begin: float = 0.0, end: float = 1.0) -> None:
        self._report, self._begin, self._end = report, begin, end

    def at(self, share: float) -> None:
        """This much of it is done, 0 to 1."""
        self._report(self._begin + share * (self._end - self._begin))

    def split(self, sizes: Sequence[float]) -> list[Step]:
        """Parts that follow each other; ``sizes`` say how long each takes, in any unit."""
        whole, done, parts = sum(sizes) or 1.0, 0.0, []
        for size in sizes:
            begin, end = (self._begin + d / whole * (self._end - self._begin) for d in (done, done + size))
            parts.append(Step(self._report, begin, end))
            done += size
        return parts


SILENT = Step(lambda share: None)
