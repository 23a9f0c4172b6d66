"""The names behind the stat logger, which runs in vLLM's API server processes."""

from __future__ import annotations

from vllm.logger import init_logger
from vllm.v1.metrics.loggers import AggregateStatLoggerBase

# "module:qualified name" -> parameters that our overrides or calls rely on.
RELIED_ON: dict[str, tuple[str, ...]] = {
    "vllm.v1.metrics.loggers:AggregateStatLoggerBase.__init__": ("vllm_config", "engine_indexes"),
    "vllm.v1.metrics.loggers:StatLoggerBase.record": (
        "scheduler_stats",
        "iteration_stats",
        "mm_cache_stats",
        "engine_idx",
    ),
}

__all__ = ["RELIED_ON", "AggregateStatLoggerBase", "init_logger"]
