"""Memory fallbacks: a start that failed for memory is repeated with less of what the planner chose.

What the user set is never changed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_quant_serve.flags import ServeArgs
from vllm_quant_serve.supervise.failures import Cause, Failure

MAX_ATTEMPTS = 3
KV_CACHE, UTILIZATION, LENGTH, SEQUENCES = (
    "--kv-cache-memory-bytes",
    "--gpu-memory-utilization",
    "--max-model-len",
    "--max-num-seqs",
)
DEFAULT_UTILIZATION = 0.92
LEAST_LENGTH = 256
_FREE = re.compile(r"Free memory on device \S* ?\(([\d.]+)/([\d.]+) GiB\)")
_ESTIMATE = re.compile(r"estimated maximum model length is (\d+)")
_AVAILABLE = re.compile(r"Available memory on node \S+ \(([\d.]+)/")


@dataclass(frozen=True)
class Fallback:
    """The planner's flags for the next attempt, and what changed, for the user."""

    flags: tuple[str, ...]
    change: str


class MemoryFallbacks:
    """Steps towards smaller demands. Each step lowers the flag that it changes.

    Attributes:
        flags: the planner's flags now in force, by name.
    """

    def __init__(self, planned: Sequence[str], user: ServeArgs, plan: Mapping[str, Any] | None) -> None:
        """
        Args:
            planned: the planner's flags with their values.
            user: the user's own flags.
            plan: the plan in its JSON form; its figures count where no flag is planned.
        """
        self.flags: dict[str, str] = {}
        self._user, self._plan = user, plan or {}
        name = ""
        for word in planned:
            if word.startswith("--"):
                name, self.flags[word] = word, ""
            else:
                self.flags[name] = word

    def step(self, failure: Failure) -> Fallback | None:
        """The next attempt after ``failure``; None when nothing that the planner chose can shrink."""
        if not failure.cause.is_memory:
            return None
        for lower in self._steps(failure):
            change = lower(failure)
            if change is not None:
                words = tuple(w for flag, value in self.flags.items() for w in ([flag, value] if value else [flag]))
                return Fallback(words, change)
        return None

    def _steps(self, failure: Failure) -> Sequence[Callable[[Failure], str | None]]:
        """What to lower, the most promising first."""
        if failure.cause is Cause.KV_CACHE and "No available memory" in failure.line:
            # There is no memory for any cache block: activations took it.
            return (self._fewer_sequences, self._shorter_requests)
        if failure.cause is Cause.KV_CACHE:
            # The cache is smaller than one request.
            return (self._shorter_requests, self._fewer_sequences)
        return (self._smaller_cache, self._lower_utilization, self._fewer_sequences, self._shorter_requests)

    def _set(self, flag: str, value: str, before: object) -> str:
        self.flags[flag] = value
        return f"{flag} {before} -> {value}"

    def _planned(self, flag: str, key: str) -> float | None:
        if flag in self.flags:
            return float(self.flags[flag])
        value = self._plan.get(key)
        return None if value is None else float(value)

    def _smaller_cache(self, failure: Failure) -> str | None:
        if self._user.has(KV_CACHE) or KV_CACHE not in self.flags:
            return None
        now = int(self.flags[KV_CACHE])
        smaller = int(now * 0.75)
        available = _AVAILABLE.search(failure.line)
        if available:
            smaller = min(smaller, int(float(available[1]) * 2**30 * 0.9))
        # Below one full-length request vLLM would refuse to start.
        least = int((self._plan.get("kv_bytes_per_token") or 0) * (self._plan.get("max_model_len") or 0))
        return self._set(KV_CACHE, str(smaller), now) if least < smaller < now else None

    def _lower_utilization(self, failure: Failure) -> str | None:
        if self._user.has(UTILIZATION) or self._user.has(KV_CACHE) or KV_CACHE in self.flags:
            return None
        now = self._planned(UTILIZATION, "gpu_memory_utilization") or DEFAULT_UTILIZATION
        smaller = now - 0.05
        free = _FREE.search(failure.line)
        if free and float(free[2]) > 0:
            smaller = min(smaller, int(float(free[1]) / float(free[2]) * 100 - 1) / 100)
        return self._set(UTILIZATION, f"{smaller:.2f}", f"{now:g}") if smaller >= 0.1 else None

    def _fewer_sequences(self, failure: Failure) -> str | None:
        now = self._planned(SEQUENCES, "max_num_seqs")
        if self._user.has(SEQUENCES) or now is None or now < 2:
            return None
        return self._set(SEQUENCES, str(int(now) // 2), int(now))

    def _shorter_requests(self, failure: Failure) -> str | None:
        now = self._planned(LENGTH, "max_model_len")
        if self._user.has(LENGTH) or now is None:
            return None
        smaller = int(now) // 2
        estimate = _ESTIMATE.search(failure.line)
        if estimate and LEAST_LENGTH <= int(estimate[1]) < now:
            smaller = int(estimate[1])
        return self._set(LENGTH, str(smaller), int(now)) if smaller >= LEAST_LENGTH else None
