"""Goodput: which finished requests met the service-level objective (Zhong et al. 2024, arXiv:2401.09670)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Objective:
    """Limits in seconds; None is no limit.

    Attributes:
        ttft: from arrival until the client has the first byte of the answer.
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

    def met(self, first_byte: float, finished: Sequence[Any]) -> bool:
        """Whether a request met the limits.

        Args:
            first_byte: seconds until its client had the first byte of the answer. An answer that is not streamed
                begins with its last token.
            finished: vLLM's ``FinishedRequestStats`` of it, one for each sequence.
        """
        if self.ttft is not None and first_byte > self.ttft:
            return False
        return self.tpot is None or max(one.mean_time_per_output_token for one in finished) <= self.tpot


def engine_ttft(finished: Any) -> float:
    """The time to the first token as the engine sees it, for requests that pass no gate.

    vLLM's figures of a finished request have no other: its whole time minus its decode time.
    """
    return float(finished.e2e_latency - finished.decode_time)


def was_aborted(finished: Any) -> bool:
    """Whether the client disconnected: such a request says nothing about the server."""
    return str(finished.finish_reason) == "abort"
