"""The watchdog: is the server still serving?

vLLM's ``/health`` stays 200 during some hangs, so the engine's steps are watched as well.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from vllm_quant_serve.supervise.options import SuperviseOptions
from vllm_quant_serve.supervise.probe import Health, Probe
from vllm_quant_serve.supervise.run_directory import ServerPage

# How long a server may stay that reports its engine dead (it answers what was in flight), or does not answer.
UNHEALTHY_TIMEOUT = {Health.DEAD: 3.0, Health.SILENT: 15.0}
RECHECK = 5.0
DEEP_TIMEOUT = 30.0


def reports_engine_steps() -> bool:
    """Whether the server will load the stat logger that reports engine steps; without it no hang can be seen."""
    allowed = os.environ.get("VLLM_PLUGINS")
    return allowed is None or "vqp_metrics" in allowed.split(",")


class Watchdog:
    """Judges one started server. Feed it pages and health with ``observe``; ask for the verdicts.

    A hang is: requests are in flight, and for ``hang_timeout`` seconds the engine made no step and the server was
    never idle. The steps of a chunked prefill count, so a long prompt is no hang.

    Attributes:
        heartbeat: whether the server reports engine steps.
        generates: whether the engine generated a token when last asked; None when unknown.
        health: the last answer of ``/health``.
    """

    def __init__(self, options: SuperviseOptions, *, heartbeat: bool) -> None:
        self.options = options
        self.heartbeat = heartbeat
        self.generates: bool | None = None
        self.health = Health.GOOD
        self._busy_since: float | None = None
        self._unhealthy_since: float | None = None
        self._last_step = 0.0
        self._checked = time.monotonic()

    def observe(self, pages: Sequence[ServerPage], health: Health, now: float) -> None:
        """Take in the server's pages and its health at ``now`` (monotonic)."""
        busy = sum(page.in_flight for page in pages) > 0
        if not busy:
            self._busy_since = None
        elif self._busy_since is None:
            self._busy_since = now
        self._last_step = max((page.last_step for page in pages), default=0.0)
        if self._last_step > self._checked:
            self.generates = True
        self.health = health
        if health is Health.GOOD and self.generates is not False:
            self._unhealthy_since = None
        elif self._unhealthy_since is None:
            self._unhealthy_since = now

    @property
    def healthy(self) -> bool:
        return self._unhealthy_since is None

    @property
    def complaint(self) -> str:
        """Why it is unhealthy, in words."""
        return self.health.value if self.health is not Health.GOOD else "it generates no token"

    def lost(self, now: float) -> bool:
        """Whether it has been unhealthy for so long that it will not recover."""
        timeout = UNHEALTHY_TIMEOUT.get(self.health, UNHEALTHY_TIMEOUT[Health.SILENT])
        return self._unhealthy_since is not None and now - self._unhealthy_since > timeout

    def stalled(self, now: float) -> float:
        """Seconds that requests have waited without an engine step."""
        if self._busy_since is None:
            return 0.0
        return max(now - max(self._busy_since, self._last_step), 0.0)

    def hung(self, now: float) -> bool:
        """Whether requests have waited longer than ``hang_timeout``."""
        limit = self.options.hang_limit
        return self.heartbeat and limit > 0 and self.stalled(now) > limit

    def deep_check_due(self, now: float) -> bool:
        """Whether an idle engine has shown no sign of life for ``deep_check`` seconds, or failed the last check."""
        interval = self.options.deep_check
        if interval <= 0 or self._busy_since is not None:
            return False
        if self.generates is False:
            interval = min(interval, RECHECK)
        return now - max(self._checked, self._last_step) >= interval

    async def deep_check(self, probe: Probe) -> None:
        """Ask for one token."""
        # The request outlasts the hang timeout: while it waits, ``hung`` counts it like any other request.
        answer = await probe.generates(timeout=2 * (self.options.hang_limit or DEEP_TIMEOUT))
        self._checked = time.monotonic()
        self.generates = answer
