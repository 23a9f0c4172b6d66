"""``VqpStatLogger``: the ``vllm.stat_logger_plugins`` entry point. It runs in vLLM's API server processes.

It works under ``vllm-quant serve``, which hands over launch metadata with the plan, and under bare ``vllm serve``,
where the metrics of the plan are absent. A failure here is logged once and never reaches the server.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from vllm_quant_serve.compat.metrics import AggregateStatLoggerBase, init_logger
from vllm_quant_serve.metrics.accounting import Account, Peaks, make_account
from vllm_quant_serve.metrics.catalogue import metrics
from vllm_quant_serve.metrics.client_times import ClientTimes, set_client_times
from vllm_quant_serve.metrics.energy import EnergyMeter, open_meter
from vllm_quant_serve.metrics.facts import read_facts
from vllm_quant_serve.metrics.rates import SlidingRate
from vllm_quant_serve.metrics.slo import Objective, engine_ttft, was_aborted
from vllm_quant_serve.supervise.run_directory import attach, read_actuals, read_metadata

logger = init_logger("vllm.vllm_quant_serve.stat_logger")
PUBLISH_EVERY = 0.5


class EngineRates:
    """The sliding rates of one engine."""

    def __init__(self) -> None:
        self.generation, self.prompt, self.bytes = SlidingRate(), SlidingRate(), SlidingRate()


class VqpStatLogger(AggregateStatLoggerBase):
    """Publishes the plugin's metrics for the engines of one API server."""

    def __init__(self, vllm_config: Any, engine_indexes: Sequence[int] | None = None) -> None:
        self.vllm_config = vllm_config
        self.engines = list(engine_indexes or [0])
        self.model_name = str(vllm_config.model_config.served_model_name)
        parallel = vllm_config.parallel_config
        self.ranks = int(parallel.tensor_parallel_size) * int(parallel.pipeline_parallel_size)
        self.devices = self.ranks * int(parallel.data_parallel_size)
        # Metrics of the whole deployment that do not add up come from the only, or first, API server.
        self.alone = int(getattr(parallel, "_api_process_count", 1) or 1) == 1
        self.first = self.alone or getattr(parallel, "_api_process_rank", 0) in (0, -1)
        self.side = attach()
        self.launch: Mapping[str, Any] = read_metadata() or {}
        self.objective = Objective.read(self.launch)
        self.times: ClientTimes | None = None
        if self.side is not None:  # there is a gate
            judge = None if self.objective is None else partial(self._guarded, self._judge)
            self.times = ClientTimes(partial(self._guarded, self._observe), judge)
            set_client_times(self.times)
        self.peaks = Peaks.read(self.launch)
        price = self.launch.get("price")
        self.price = None if price is None else float(price) * self.devices
        self.account: Account | None = None
        self.kv_tokens: int | None = None
        self.meter: EnergyMeter | None = None
        self._rates = {index: EngineRates() for index in self.engines}
        self._broken = False
        self._published = 0.0
        self._weights_known = False
        self._metered_tokens = 0
        self._guarded(self._publish_facts)

    def record(
        self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
    ) -> None:
        """Called by vLLM after every engine step."""
        if not self._broken:
            self._guarded(self._record, scheduler_stats, iteration_stats, engine_idx)

    def log_engine_initialized(self) -> None:
        """Called by vLLM once the KV cache exists."""
        self._guarded(self._publish_actuals)

    def log(self) -> None:
        """Called by vLLM every ten seconds; lets the rates fall to zero when no step comes."""
        if not self._broken:
            self._guarded(self._publish_rates, time.monotonic())
            self._guarded(self._publish_slow)

    # -------------------------------------------------------------------------

    def _guarded(self, work: Callable[..., None], *arguments: Any) -> None:
        """Run ``work``; vLLM's statistics are no stable interface, and a metric must not stop a server."""
        try:
            work(*arguments)
        except Exception:
            self._broken = True
            logger.exception("the vqp metrics stop here: vLLM's statistics are not as expected")

    def _set(self, name: str, value: float | None, *labels: str) -> None:
        if value is not None:
            metrics()[name].labels(self.model_name, *labels).set(value)  # type: ignore[union-attr]

    def _add(self, name: str, amount: float, *labels: str) -> None:
        metrics()[name].labels(self.model_name, *labels).inc(amount)  # type: ignore[union-attr]

    def _remove(self, name: str) -> None:
        metrics()[name].remove_by_labels({"model_name": self.model_name})

    def _publish_facts(self) -> None:
        facts = self.facts = read_facts(self.vllm_config)
        self._set("vqp_quantization_info", 1, facts.method, facts.scheme or "unknown")
        for use in facts.kernels:
            self._set("vqp_kernel_info", 1, use.kernel, use.scheme, use.why)
        self._set("vqp_weight_bits", facts.weight_bits)
        self._set("vqp_checkpoint_bytes", facts.checkpoint_bytes)
        self._set("vqp_devices", self.devices)
        self._set("vqp_server_restarts", self.launch.get("restarts"))
        self._set("vqp_server_start_retries", self.launch.get("retries"))
        self._set("vqp_price_per_hour", self.price)
        if self.peaks is not None:
            self._set("vqp_peak_memory_bandwidth_bytes_per_second", self.peaks.bandwidth)
            self._set("vqp_peak_flops_per_second", self.peaks.flops)
        if self.objective is not None:
            self._set("vqp_slo_ttft_seconds", self.objective.ttft)
            self._set("vqp_slo_tpot_seconds", self.objective.tpot)
            for result in ("met", "missed"):
                self._add("vqp_slo_requests", 0, result)
            self._add("vqp_goodput_tokens", 0)
        plan = self.launch.get("plan")
        if plan:
            self._set("vqp_weight_bytes", plan["weight_bytes_per_rank"], "plan")
            for source, key in (("plan_low", "low"), ("plan", "value"), ("plan_high", "high")):
                self._set("vqp_kv_cache_tokens", plan["kv_tokens"][key], source)

    def _publish_actuals(self) -> None:
        cache = self.vllm_config.cache_config
        tokens = getattr(cache, "kv_cache_size_tokens", None)
        if tokens is None and cache.num_gpu_blocks and cache.block_size:
            tokens = cache.num_gpu_blocks * cache.block_size
        self.kv_tokens = tokens
        self._set("vqp_kv_cache_tokens", tokens, "actual")
        launched = self.launch.get("launched_at")
        if launched is not None:
            self._set("vqp_load_seconds", time.time() - launched)
        if self.peaks is not None:
            self.account = make_account(self.facts.size, self.launch.get("plan"), self.ranks, tokens)
        if self.first:
            self.meter = open_meter(self.devices)
        for engine in self.engines:
            self._publish_headroom(0.0, engine)

    def _publish_headroom(self, kv_usage: float, engine: int) -> None:
        length = self.vllm_config.model_config.max_model_len
        if self.kv_tokens is not None and length:
            free = self.kv_tokens * (1.0 - kv_usage)
            self._set("vqp_headroom_requests", free // length, str(engine))

    def _publish_slow(self) -> None:
        """What changes seldom: energy, and figures that the supervisor reads from the engine's log."""
        if not self._weights_known:
            weights = read_actuals().get("weight_bytes")
            self._weights_known = weights is not None
            self._set("vqp_weight_bytes", weights, "actual")
        if self.meter is not None:
            self._publish_energy(self.meter.since_last())

    def _publish_energy(self, joules: float) -> None:
        self._add("vqp_energy_joules", joules)
        tokens, self._metered_tokens = self._metered_tokens, 0
        # Each of several API servers sees a part of the tokens, and the devices work for all of them.
        if self.alone and tokens:
            self._set("vqp_joules_per_token", joules / tokens)
        else:
            self._remove("vqp_joules_per_token")

    def _record(self, scheduler_stats: Any, iteration_stats: Any, engine: int) -> None:
        now = time.monotonic()
        rates = self._rates.get(engine)
        if rates is None:
            return
        if scheduler_stats is not None:
            if self.side is not None:
                self.side.step()
            if self.account is not None:
                rates.bytes.add(now, self.account.step_bytes(scheduler_stats.kv_cache_usage))
        if iteration_stats is not None:
            rates.generation.add(now, iteration_stats.num_generation_tokens)
            self._metered_tokens += iteration_stats.num_generation_tokens
            rates.prompt.add(now, iteration_stats.prompt_token_stats.computed)
            for finished in iteration_stats.finished_requests:
                self._take_finished(finished)
        if now - self._published >= PUBLISH_EVERY:
            self._publish_rates(now)
            if scheduler_stats is not None:
                self._publish_headroom(scheduler_stats.kv_cache_usage, engine)

    def _take_finished(self, finished: Any) -> None:
        if self.objective is None or was_aborted(finished):
            return
        # A request behind the gate is judged when its client has the answer.
        if self.times is None or not self.times.attach(finished):
            self._judge(engine_ttft(finished), [finished])

    def _observe(self, seconds: float, streamed: bool) -> None:
        """A client has the first byte of an answer."""
        histogram = metrics()["vqp_time_to_first_byte_seconds"]
        histogram.labels(self.model_name, str(streamed).lower()).observe(seconds)  # type: ignore[union-attr]
        if self.side is not None:
            self.side.first_bytes.add(seconds, streamed=streamed)

    def _judge(self, first_byte: float, finished: Sequence[Any]) -> None:
        assert self.objective is not None
        met = self.objective.met(first_byte, finished)
        self._add("vqp_slo_requests", 1, "met" if met else "missed")
        if met:
            self._add("vqp_goodput_tokens", sum(one.num_generation_tokens for one in finished))

    def _publish_rates(self, now: float) -> None:
        self._published = now
        total = 0.0
        for engine, rates in self._rates.items():
            label, generation, prompt = str(engine), rates.generation.rate(now), rates.prompt.rate(now)
            total += generation
            self._set("vqp_generation_tokens_per_second", generation, label)
            self._set("vqp_prompt_tokens_per_second", prompt, label)
            self._set("vqp_generation_tokens_per_second_per_device", generation / self.devices, label)
            if self.account is not None and self.peaks is not None:
                operations = (generation + prompt) * self.account.token_operations()
                self._set("vqp_model_bandwidth_utilization_ratio", rates.bytes.rate(now) / self.peaks.bandwidth, label)
                self._set("vqp_model_flops_utilization_ratio", operations / self.peaks.flops, label)
        self._publish_cost(total)

    def _publish_cost(self, generation: float) -> None:
        if self.price is None or not self.alone:
            return
        if generation > 0:
            self._set("vqp_cost_per_million_tokens", self.price / 3600.0 / generation * 1e6)
        else:
            # While idle a token has no finite cost: the metric is removed and does not keep its last value.
            self._remove("vqp_cost_per_million_tokens")
