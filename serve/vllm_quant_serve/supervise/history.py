"""The last hour of the server, sampled from its ``/metrics``, for the charts of the status page."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from vllm_quant_serve.supervise.probe import Probe

SAMPLE_EVERY = 5.0
KEPT = 720

# Name in the sample -> metric, summed over engines.
GAUGES = {
    "running": "vllm:num_requests_running",
    "waiting": "vllm:num_requests_waiting",
    "generation_rate": "vqp_generation_tokens_per_second",
    "prompt_rate": "vqp_prompt_tokens_per_second",
}
# Ratios: the highest of all engines.
PEAKS = {
    "kv_usage": "vllm:kv_cache_usage_perc",
    "bandwidth_utilization": "vqp_model_bandwidth_utilization_ratio",
    "flops_utilization": "vqp_model_flops_utilization_ratio",
}
# Mean between two samples, from a histogram's sum and count.
MEANS = {
    "ttft": "vqp_time_to_first_byte_seconds",
    "tpot": "vllm:request_time_per_output_token_seconds",
}


@dataclass(frozen=True)
class Scrape:
    """Sums and maxima of the samples of interest, by sample name."""

    sums: dict[str, float]
    peaks: dict[str, float]


_WANTED = frozenset({*GAUGES.values(), *PEAKS.values(),
                     *(f"{name}_{part}" for name in MEANS.values() for part in ("sum", "count"))})  # fmt: skip
_BEGINNINGS = tuple(_WANTED)


def read_scrape(text: str) -> Scrape:
    """The samples of interest in a Prometheus text exposition.

    Raises:
        ValueError: one of them cannot be read.
    """
    sums: dict[str, float] = {}
    peaks: dict[str, float] = {}
    # Only their lines are parsed: vLLM's exposition has about a thousand others, and this runs in the event loop.
    lines = "".join(line + "\n" for line in text.splitlines() if line.startswith(_BEGINNINGS))
    for family in text_string_to_metric_families(lines):
        for sample in family.samples:
            if sample.name in _WANTED:
                sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
                peaks[sample.name] = max(peaks.get(sample.name, sample.value), sample.value)
    return Scrape(sums, peaks)


class History:
    """The last ``KEPT`` samples; an unknown value is absent from its sample."""

    def __init__(self) -> None:
        self.samples: deque[dict[str, float]] = deque(maxlen=KEPT)
        self._before: Scrape | None = None

    def add(self, text: str, now: float) -> None:
        """Add the sample of a scrape taken at ``now`` (seconds since the epoch)."""
        scrape = read_scrape(text)
        sample = {"time": round(now, 3)}
        sample |= {name: scrape.sums[metric] for name, metric in GAUGES.items() if metric in scrape.sums}
        sample |= {name: scrape.peaks[metric] for name, metric in PEAKS.items() if metric in scrape.peaks}
        for name, metric in MEANS.items():
            mean = self._mean(scrape, metric)
            if mean is not None:
                sample[name] = mean
        self._before = scrape
        self.samples.append(sample)

    def _mean(self, scrape: Scrape, metric: str) -> float | None:
        if self._before is None or f"{metric}_count" not in self._before.sums:
            return None
        count, total = (
            scrape.sums.get(f"{metric}_{part}", 0.0) - self._before.sums[f"{metric}_{part}"]
            for part in ("count", "sum")
        )
        # A restarted server counts from zero again, and without a request there is no mean.
        return total / count if count > 0 and total >= 0 else None

    def forget(self) -> None:
        """Start anew: the counters of a new server begin at zero."""
        self._before = None

    async def follow(self, probe: Probe) -> None:
        """Sample until cancelled."""
        while True:
            await asyncio.sleep(SAMPLE_EVERY)
            answer = await probe.get("/metrics")
            if answer is None or answer.status_code != 200:
                self.forget()
                continue
            try:
                self.add(answer.text, time.time())
            except ValueError:
                self.forget()

    def to_json(self) -> list[dict[str, float]]:
        """The samples, oldest first."""
        return list(self.samples)
