"""The watchdog: is the server still serving?

vLLM's ``/health`` stays 200 on some hangs, so the engine's progress is looked at as well.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from vllm_quant_serve.supervise.probe import Health, Probe
from vllm_quant_serve.supervise.run_directory import ServerPage
from vllm_quant_serve.supervise.state import SuperviseOptions

# How long a server may linger that says its engine is dead (it answers what was in flight), or says nothing.
PATIENCE = {Health.DEAD: 3.0, Health.SILENT: 15.0}
RECHECK = 5.0
DEEP_TIMEOUT = 30.0


class Watchdog:
    """Judges one started server. Feed it pages and health; ask for the verdicts.

    A hang is: requests are in flight, and for ``hang_timeout`` seconds neither did an engine step
    come nor was the server idle. Chunked prefill steps count, so a long prompt is no hang.
    """

    def __init__(self, options: SuperviseOptions, *, heartbeat: bool) -> None:
        self.options = options
        self.heartbeat = heartbeat
        self._busy_since: float | None = None
        self._unhealthy_since: float | None = None
        self._last_step = 0.0
        self._checked = time.monotonic()
        self.deep_ok: bool | None = None
        self.health = Health.GOOD

    def observe(self, pages: Sequence[ServerPage], health: Health, now: float) -> None:
        """One look at the server."""
        busy = sum(page.in_flight for page in pages) > 0
        if not busy:
            self._busy_since = None
        elif self._busy_since is None:
            self._busy_since = now
        self._last_step = max((page.last_step for page in pages), default=0.0)
        if self._last_step > self._checked:
            self.deep_ok = True
        self.health = health
        if health is Health.GOOD and self.deep_ok is not False:
            self._unhealthy_since = None
        elif self._unhealthy_since is None:
            self._unhealthy_since = now

    @property
    def healthy(self) -> bool:
        return self._unhealthy_since is None

    def gone(self, now: float) -> bool:
        """Unhealthy for so long that it will not come back."""
        patience = PATIENCE.get(self.health, PATIENCE[Health.SILENT])
        return self._unhealthy_since is not None and now - self._unhealthy_since > patience

    @property
    def complaint(self) -> str:
        """Why it is unhealthy, in words."""
        return self.health.value if self.health is not Health.GOOD else "it generates no token"

    def stalled(self, now: float) -> float:
        """Seconds that requests have waited without an engine step."""
        if self._busy_since is None:
            return 0.0
        return max(now - max(self._busy_since, self._last_step), 0.0)

    def hung(self, now: float) -> bool:
        limit = self.options.hang_timeout
        return self.heartbeat and limit > 0 and self.stalled(now) > limit

    def deep_check_due(self, now: float) -> bool:
        """An idle engine that has shown no sign of life for ``deep_check`` seconds, or failed the last check."""
        interval = self.options.deep_check
        if interval <= 0 or self._busy_since is not None:
            return False
        if self.deep_ok is False:
            interval = min(interval, RECHECK)
        return now - max(self._checked, self._last_step) >= interval

    async def deep_check(self, probe: Probe) -> None:
        """Ask for one token. A model without completions is left alone."""
        # Longer than the watchdog waits: it is the judge of a hang, and this request its evidence.
        answer = await probe.generates(timeout=2 * (self.options.hang_timeout or DEEP_TIMEOUT))
        self._checked = time.monotonic()
        # None: not a model that completes text, so nothing is known.
        self.deep_ok = answer
