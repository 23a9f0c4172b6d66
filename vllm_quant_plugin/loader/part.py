"""One part of a matrix (q, k, v; gate, up) and the rows of it that a rank holds."""

from __future__ import annotations

from dataclasses import dataclass

# What vLLM calls a part, or several consecutive parts (a tuple), when it loads it; None for the whole matrix.
ShardId = str | int | tuple[int, ...] | None


@dataclass(frozen=True)
class Part:
    """One part of a matrix.

    Attributes:
        shard_id: what vLLM calls it when it loads it; None where the matrix has no parts.
        rows: N of the whole part.
        start, stop: the rows that this rank holds.
        pad_to: rows to fill up to with zeros (a padded vocabulary), else 0.
    """

    shard_id: ShardId
    rows: int
    start: int
    stop: int
    pad_to: int = 0


def replicated(shard_id: ShardId, rows: int) -> Part:
    """A part that every rank holds."""
    return Part(shard_id, rows, 0, rows)


def divided(shard_id: ShardId, rows: int, rank: int, size: int) -> Part:
    """A part whose rows are divided among ``size`` ranks."""
    return Part(shard_id, rows, rows // size * rank, rows // size * (rank + 1))
