"""The states of a supervised server, the options of its supervision, and the counts that are exported."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class State(Enum):
    """Where the server is in its life."""

    STARTING = "starting"
    READY = "ready"
    UNHEALTHY = "unhealthy"
    HUNG = "hung"
    RESTARTING = "restarting"
    DRAINING = "draining"
    STOPPING = "stopping"
    STOPPED = "stopped"


@dataclass(frozen=True)
class SuperviseOptions:
    """How to supervise; all times in seconds.

    Attributes:
        startup_timeout: until ``/health`` and ``/v1/models`` answer.
        drain_timeout: for requests in flight after the first SIGTERM.
        stop_timeout: for vLLM's own shutdown after that, before SIGKILL.
        hang_timeout: requests wait and no engine step comes: the engine hangs. 0 turns it off.
        deep_check: an idle engine is asked for one token this often. 0 turns it off.
        restarts: how often a dead or hung server is started again.
        backoff: before the first restart; doubled for each, at most ``backoff_limit``.
        stable: after this long in service the count of restarts begins anew.
    """

    startup_timeout: float = 1800.0
    drain_timeout: float = 30.0
    stop_timeout: float = 15.0
    hang_timeout: float = 30.0
    deep_check: float = 30.0
    restarts: int = 0
    backoff: float = 1.0
    backoff_limit: float = 30.0
    stable: float = 600.0


@dataclass
class Counts:
    """What happened so far.

    Attributes:
        start_failures: failed start-ups by cause.
        retries: start-ups repeated with smaller demands.
        restarts: start-ups after a dead or hung server.
        hangs: times the watchdog found the engine hung.
        drains: drains by result, ``clean`` or ``cut``.
    """

    start_failures: dict[str, int] = field(default_factory=dict)
    retries: int = 0
    restarts: int = 0
    hangs: int = 0
    drains: dict[str, int] = field(default_factory=dict)

    def failed(self, cause: str) -> None:
        self.start_failures[cause] = self.start_failures.get(cause, 0) + 1

    def drained(self, result: str) -> None:
        self.drains[result] = self.drains.get(result, 0) + 1
