"""``VqpStatLogger``: the ``vllm.stat_logger_plugins`` entry point. It runs in vLLM's API server processes.

It works under ``vllm-quant serve``, which adds the plan, and under bare ``vllm serve``, where
the metrics of the plan are absent. A failure in here is logged once and never reaches the server.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from vllm_quant_serve.compat import AggregateStatLoggerBase, init_logger
from vllm_quant_serve.metrics.catalogue import metrics
from vllm_quant_serve.metrics.facts import read_facts
from vllm_quant_serve.metrics.rates import SlidingRate
from vllm_quant_serve.rundir import attach, read_actuals, read_plan

logger = init_logger("vllm.vllm_quant_serve.stat_logger")
PUBLISH_EVERY = 0.5


class VqpStatLogger(AggregateStatLoggerBase):
    """Publishes the plugin's metrics for the engines of one API server."""

    def __init__(self, vllm_config: Any, engine_indexes: Sequence[int] | None = None) -> None:
        self.vllm_config = vllm_config
        self.engines = list(engine_indexes or [0])
        self.model_name = str(vllm_config.model_config.served_model_name)
        self.side = attach()
        self._broken = False
        self._generation = {index: SlidingRate() for index in self.engines}
        self._prompt = {index: SlidingRate() for index in self.engines}
        self._published = 0.0
        self._told = False
        self._guarded(self._publish_facts)

    def record(
        self,
        scheduler_stats: Any,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        """Called by vLLM after every engine step."""
        if not self._broken:
            self._guarded(self._record, scheduler_stats, iteration_stats, engine_idx)

    def log_engine_initialized(self) -> None:
        """Called by vLLM once the KV cache exists."""
        self._guarded(self._publish_actuals)

    def log(self) -> None:
        """Called by vLLM every ten seconds; lets the rates fall to zero when no step comes."""
        self._guarded(self._publish_rates, time.monotonic())
        self._guarded(self._publish_told)

    # -------------------------------------------------------------------------

    def _guarded(self, work: Any, *arguments: Any) -> None:
        """Run ``work``: vLLM's statistics are no stable interface, and a metric must not stop a server."""
        try:
            work(*arguments)
        except Exception:
            self._broken = True
            logger.exception("vqp metrics stop here: vLLM's statistics are not what was expected")

    def _set(self, name: str, value: float | None, *labels: str) -> None:
        if value is not None:
            metrics()[name].labels(self.model_name, *labels).set(value)  # type: ignore[union-attr]

    def _publish_facts(self) -> None:
        facts = read_facts(self.vllm_config)
        self._set("vqp_quantization_info", 1, facts.method, facts.scheme or "unknown")
        self._set("vqp_weight_bits", facts.weight_bits)
        self._set("vqp_checkpoint_bytes", facts.checkpoint_bytes)
        plan = (read_plan() or {}).get("plan")
        if not plan:
            return
        self._set("vqp_weight_bytes", plan["weight_bytes_per_rank"], "plan")
        for source, key in (("plan_low", "low"), ("plan", "value"), ("plan_high", "high")):
            self._set("vqp_kv_cache_tokens", plan["kv_tokens"][key], source)

    def _publish_actuals(self) -> None:
        cache = self.vllm_config.cache_config
        tokens = getattr(cache, "kv_cache_size_tokens", None)
        if tokens is None and cache.num_gpu_blocks and cache.block_size:
            tokens = cache.num_gpu_blocks * cache.block_size
        self._set("vqp_kv_cache_tokens", tokens, "actual")
        launched = (read_plan() or {}).get("launched_at")
        if launched is not None:
            self._set("vqp_load_seconds", time.time() - launched)

    def _publish_told(self) -> None:
        """Figures that reach the supervisor from the engine's log, a moment after the engine is up."""
        if not self._told:
            weights = read_actuals().get("weight_bytes")
            self._told = weights is not None
            self._set("vqp_weight_bytes", weights, "actual")

    def _record(self, scheduler_stats: Any, iteration_stats: Any, engine: int) -> None:
        now = time.monotonic()
        if scheduler_stats is not None and self.side is not None:
            self.side.step()
        if iteration_stats is not None and engine in self._generation:
            self._generation[engine].add(now, iteration_stats.num_generation_tokens)
            self._prompt[engine].add(now, iteration_stats.prompt_token_stats.computed)
        if now - self._published >= PUBLISH_EVERY:
            self._publish_rates(now)

    def _publish_rates(self, now: float) -> None:
        self._published = now
        for engine in self.engines:
            self._set("vqp_generation_tokens_per_second", self._generation[engine].rate(now), str(engine))
            self._set("vqp_prompt_tokens_per_second", self._prompt[engine].rate(now), str(engine))
