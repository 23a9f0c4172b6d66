"""A planning question: the model and the groups of options. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self, get_args

from vllm_quant_plugin.errors import UsageError
from vllm_quant_plugin.sizes import LARGEST
from vllm_quant_serve.plan.devices.gpus import MOST_DEVICES
from vllm_quant_serve.plan.options import DeviceOptions, EngineOptions, GoalOptions, MemoryOptions, Objective

# vLLM counts tokens and requests in 32 bits.
_MOST = (1 << 31) - 1
# Field -> the most that it may be.
_COUNTS = {
    **dict.fromkeys(("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "gpu_count", "nodes"),
                    MOST_DEVICES),
    **dict.fromkeys(("max_model_len", "concurrency", "max_num_seqs", "max_num_batched_tokens", "block_size",
                     "prompt_tokens", "output_tokens"), _MOST),
    **dict.fromkeys(("kv_cache_memory", "gpu_memory", "cpu_memory"), LARGEST),
}  # fmt: skip


def _flag(field: str) -> str:
    return "--kv-cache-memory-bytes" if field == "kv_cache_memory" else f"--{field.replace('_', '-')}"


@dataclass(frozen=True)
class _ModelOptions:
    """Which model.

    Attributes:
        model: a model folder or a Hub id.
        revision: Hub branch, tag or commit.
    """

    model: str
    revision: str | None = None


@dataclass(frozen=True)
class PlanRequest(GoalOptions, EngineOptions, MemoryOptions, DeviceOptions, _ModelOptions):
    """A planning question: every option of its groups as one flat record.

    Attributes:
        exact: also ask vLLM itself, in a subprocess, about the placement that was chosen.
    """

    exact: bool = False

    @classmethod
    def of(cls, model: str, *groups: object, **fields: Any) -> Self:
        """The question of one model under groups of options."""
        values = {key: value for group in groups for key, value in vars(group).items()}
        return cls(model, **{**values, **fields})

    def check(self) -> None:
        """Refuse values that make no sense on any device.

        Raises:
            UsageError: a value is out of range or unknown; the message names the flag.
        """
        for name, most in _COUNTS.items():
            value = getattr(self, name)
            if value is None or 1 <= value <= most:
                continue
            shown = str(value) if abs(value) < 1 << 200 else "of so many digits"
            hint = "give a positive number" if value < 1 else f"give at most {most}"
            raise UsageError(f"{_flag(name)} {shown} must be {'at least 1' if value < 1 else f'at most {most}'}", hint)
        share = self.gpu_memory_utilization
        if share is not None and not 0 < share <= 1:
            raise UsageError(f"--gpu-memory-utilization {share} is out of range", "0 < x <= 1")
        for flag, limit in (("--slo-ttft", self.slo_ttft), ("--slo-tpot", self.slo_tpot), ("--price", self.price)):
            if limit is not None and not 0 < limit < math.inf:
                hint = "give seconds, or currency per device-hour for --price"
                raise UsageError(f"{flag} {limit} must be positive", hint)
        if self.objective not in get_args(Objective):
            known = ", ".join(get_args(Objective))
            raise UsageError(f"--objective {self.objective} is unknown", f"it is one of {known}")
