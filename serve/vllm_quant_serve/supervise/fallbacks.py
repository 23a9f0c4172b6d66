"""Asking for less after a memory failure at start-up: only of what the planner chose, never of what the user set."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vllm_quant_serve.flags import ServeArgs
from vllm_quant_serve.supervise.failures import Cause, Failure

MAX_ATTEMPTS = 3
KV_FLAG, UTILIZATION, LENGTH, SEQUENCES = (
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
    """The planner's flags for the next attempt, and the change in words."""

    flags: tuple[str, ...]
    change: str


@dataclass
class MemoryFallbacks:
    """Steps towards smaller demands; each is strictly smaller than the one before in the flag it changes.

    Attributes:
        flags: the planner's flags now in force.
        plan: the plan's JSON form; its figures stand where no flag does.
    """

    words: ServeArgs
    flags: dict[str, str]
    plan: Mapping[str, Any] | None
    changes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, planned: Sequence[str], words: ServeArgs, plan: Mapping[str, Any] | None) -> MemoryFallbacks:
        flags: dict[str, str] = {}
        name = ""
        for word in planned:
            if word.startswith("--"):
                name, flags[word] = word, ""
            else:
                flags[name] = word
        return cls(words, flags, plan)

    def step(self, failure: Failure) -> Fallback | None:
        """The next attempt after ``failure``; None when nothing that we chose can shrink."""
        if not failure.cause.is_memory:
            return None
        for attempt in self._order(failure):
            change = attempt(failure)
            if change is not None:
                self.changes.append(change)
                words = tuple(w for flag, value in self.flags.items() for w in ([flag, value] if value else [flag]))
                return Fallback(words, change)
        return None

    def _order(self, failure: Failure) -> Sequence[Any]:
        # No cache at all: activations took it. Too small a cache: its requests are too long.
        if failure.cause is Cause.KV_CACHE and "No available memory" in failure.line:
            return (self._fewer_sequences, self._shorter)
        if failure.cause is Cause.KV_CACHE:
            return (self._shorter, self._fewer_sequences)
        return (self._smaller_cache, self._less_of_the_device, self._fewer_sequences, self._shorter)

    def _set(self, flag: str, value: str, was: object) -> str:
        self.flags[flag] = value
        return f"{flag} {was} -> {value}"

    def _planned(self, flag: str, key: str) -> float | None:
        if flag in self.flags:
            return float(self.flags[flag])
        value = (self.plan or {}).get(key)
        return None if value is None else float(value)

    def _smaller_cache(self, failure: Failure) -> str | None:
        if self.words.has(KV_FLAG) or KV_FLAG not in self.flags:
            return None
        now = int(self.flags[KV_FLAG])
        smaller = int(now * 0.75)
        told = _AVAILABLE.search(failure.line)
        if told:
            smaller = min(smaller, int(float(told[1]) * 2**30 * 0.9))
        # Below one full-length request vLLM would refuse: keep room for one.
        per_token = (self.plan or {}).get("kv_bytes_per_token") or 0
        least = int(per_token * ((self.plan or {}).get("max_model_len") or 0))
        return self._set(KV_FLAG, str(smaller), now) if least < smaller < now else None

    def _less_of_the_device(self, failure: Failure) -> str | None:
        if self.words.has(UTILIZATION) or self.words.has(KV_FLAG) or KV_FLAG in self.flags:
            return None
        now = self._planned(UTILIZATION, "gpu_memory_utilization") or DEFAULT_UTILIZATION
        smaller = now - 0.05
        told = _FREE.search(failure.line)
        if told and float(told[2]) > 0:
            smaller = min(smaller, int(float(told[1]) / float(told[2]) * 100 - 1) / 100)
        return self._set(UTILIZATION, f"{smaller:.2f}", f"{now:g}") if smaller >= 0.1 else None

    def _fewer_sequences(self, failure: Failure) -> str | None:
        now = self._planned(SEQUENCES, "max_num_seqs")
        if self.words.has(SEQUENCES) or now is None or now < 2:
            return None
        return self._set(SEQUENCES, str(int(now) // 2), int(now))

    def _shorter(self, failure: Failure) -> str | None:
        now = self._planned(LENGTH, "max_model_len")
        if self.words.has(LENGTH) or now is None:
            return None
        smaller = int(now) // 2
        told = _ESTIMATE.search(failure.line)
        if told and LEAST_LENGTH <= int(told[1]) < now:
            smaller = int(told[1])
        return self._set(LENGTH, str(smaller), int(now)) if smaller >= LEAST_LENGTH else None
