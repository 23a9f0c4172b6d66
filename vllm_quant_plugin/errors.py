"""The errors a user can meet, each with what to do about it and an exit code.

Every expected failure in this project is a ``VqpError``: the command line prints
``message`` and ``hint`` on one line each and leaves with ``exit_code``. Anything else that
escapes is a bug and keeps its traceback. The codes are documented in docs/reference/exit-codes.md.
"""

from __future__ import annotations

from typing import ClassVar


class VqpError(Exception):
    """An expected failure.

    Args:
        message: what is wrong, naming the file, tensor or flag.
        hint: how to fix it, in the imperative.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(VqpError):
    """Flags or values that cannot be combined or are out of range."""

    exit_code = 2


class NoFeasiblePlanError(VqpError):
    """No placement of the model on the given hardware exists."""

    exit_code = 3


class StartupError(VqpError):
    """The server did not come up (port in use, engine refused, out of retries)."""

    exit_code = 4


class EngineDiedError(VqpError):
    """The engine came up and then died or hung."""

    exit_code = 5


class CheckpointError(VqpError, ValueError):
    """A model folder that is missing, damaged, or of a kind we do not read.

    Also a ``ValueError`` so that vLLM's pydantic config validation reports it as one line.
    """

    exit_code = 6


class BackendError(VqpError):
    """An optional library or a compiled kernel that is needed here is missing or failed."""

    exit_code = 7


class OutputError(VqpError):
    """The output cannot be written: it exists already, no space, no permission."""

    exit_code = 8


class QualityError(VqpError):
    """The model is worse than the user allows (``--max-kl``), or that could not be measured."""

    exit_code = 9


class ResumeError(VqpError):
    """``--resume``: what is there belongs to a run with another recipe, input, library version or thread count."""

    exit_code = 10
