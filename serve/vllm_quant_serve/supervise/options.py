"""How a session is supervised: options of ``vllm-quant serve`` and of the Python API."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import typer

HANG_TIMEOUT = 30.0
# On a CPU one step of a long prompt's chunk takes far longer.
CPU_HANG_TIMEOUT = 120.0


@dataclass(frozen=True)
class SuperviseOptions:
    """How to supervise; all times in seconds.

    Attributes:
        startup_timeout: until ``/health`` and ``/v1/models`` answer.
        drain_timeout: for requests in flight after the first SIGTERM.
        hang_timeout: the engine hangs when requests wait this long without an engine step. 0 turns the check off; None
            is the device's default.
        deep_check: an idle engine is asked for one token this often. 0 turns the check off.
        restarts: how often a dead or hung server is started again.
        stop_timeout: for vLLM's own shutdown after the drain, before SIGKILL.
        backoff: before the first restart; doubled for each, at most ``backoff_limit``.
        stable: after this long in service the count of restarts begins anew.
    """

    help_panel: ClassVar[str] = "Supervision"

    startup_timeout: Annotated[float, typer.Option(min=1, help="Seconds until ready.")] = 1800.0
    drain_timeout: Annotated[float, typer.Option(min=0, help="Seconds for requests in flight after SIGTERM.")] = 30.0
    hang_timeout: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Seconds that requests may wait without an engine step. [30, CPU 120, 0: off]",
        ),
    ] = None
    deep_check: Annotated[
        float, typer.Option(min=0, help="Ask an idle engine for a token every so many seconds; 0: off.")
    ] = 30.0
    restarts: Annotated[
        int, typer.Option("--restart", min=0, help="Start a dead or hung server again, at most N times.")
    ] = 0
    stop_timeout: float = 15.0
    backoff: float = 1.0
    backoff_limit: float = 30.0
    stable: float = 600.0

    def for_device(self, *, cpu: bool) -> SuperviseOptions:
        """These options with the hang timeout of the device where none was chosen."""
        if self.hang_timeout is not None:
            return self
        return replace(self, hang_timeout=CPU_HANG_TIMEOUT if cpu else HANG_TIMEOUT)

    @property
    def hang_limit(self) -> float:
        """The hang timeout in force; 0 turns the check off."""
        return HANG_TIMEOUT if self.hang_timeout is None else self.hang_timeout
