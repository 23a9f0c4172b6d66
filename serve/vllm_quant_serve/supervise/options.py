"""How a session is supervised: options of ``vllm-quant serve`` and of the Python API."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SuperviseOptions:
    """How to supervise; all times in seconds.

    Attributes:
        startup_timeout: until ``/health`` and ``/v1/models`` answer.
        drain_timeout: for requests in flight after the first SIGTERM.
        stop_timeout: for vLLM's own shutdown after that, before SIGKILL.
        hang_timeout: the engine hangs when requests wait this long without an engine step. 0 turns the check off.
        deep_check: an idle engine is asked for one token this often. 0 turns the check off.
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
