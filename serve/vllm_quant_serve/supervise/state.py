"""The states of a session and the counts that are exported."""

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


@dataclass
class Counts:
    """What happened so far.

    Attributes:
        start_failures: failed starts by cause.
        retries: starts repeated with smaller memory demands.
        restarts: starts after a dead or hung server.
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
