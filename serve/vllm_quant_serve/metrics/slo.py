"""Goodput: which finished requests met the service-level objective (Zhong et al. 2024, arXiv:2401.09670)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Objective:
    """Limits in seconds; None is no limit.

    Attributes:
        ttft: from arrival to the first token.
        tpot: mean time per output token after the first.
    """

    ttft: float | None = None
    tpot: float | None = None

    @classmethod
    def read(cls, launch: Mapping[str, Any]) -> Objective | None:
        """From the launch metadata; None where no limit was set."""
        limits = launch.get("slo") or {}
        found = cls(limits.get("ttft"), limits.get("tpot"))
        return None if found.ttft is None and found.tpot is None else found

    def met(self, finished: Any) -> bool:
        """Whether a ``FinishedRequestStats`` of vLLM met the limits.

        The time to the first token is the request's whole time minus its decode time: vLLM reports no
        other per request.
        """
        ttft = finished.e2e_latency - finished.decode_time
        if self.ttft is not None and ttft > self.ttft:
            return False
        return self.tpot is None or finished.mean_time_per_output_token <= self.tpot


def was_aborted(finished: Any) -> bool:
    """Whether the client disconnected: such a request says nothing about the server."""
    return str(finished.finish_reason) == "abort"
