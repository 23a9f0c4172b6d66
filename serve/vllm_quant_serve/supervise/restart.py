"""When a dead or hung server is started again: so many times, each after a longer wait."""

from __future__ import annotations

from vllm_quant_serve.supervise.options import SuperviseOptions


class RestartBudget:
    """Counts the restarts of a session. A server that served long enough earns the whole budget again.

    Attributes:
        used: restarts since the budget was last whole.
    """

    def __init__(self, options: SuperviseOptions) -> None:
        self.options = options
        self.used = 0

    def next_delay(self, served_seconds: float) -> float | None:
        """Take one restart.

        Args:
            served_seconds: how long ago the server that has just ended became ready.

        Returns:
            Seconds to wait before the restart; None when no restart is left.
        """
        if served_seconds > self.options.stable:
            self.used = 0
        if self.used >= self.options.restarts:
            return None
        delay = min(self.options.backoff * 2**self.used, self.options.backoff_limit)
        self.used += 1
        return delay
