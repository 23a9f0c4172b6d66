"""Every metric the plugin puts into vLLM's ``/metrics``: name, help, labels, and how processes are merged.

Base units, ratios from 0 to 1, no request ids. A metric with labels exists only once a value is
set, so an unknown value is absent. ``merge`` is prometheus_client's multiprocess
mode, for several API servers: facts are equal in all of them (``max``), shares of one stream of
requests add up (``livesum``), and of several views of one engine the latest counts (``mostrecent``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

Merge = Literal["max", "livesum", "mostrecent", "counter", "histogram"]
BASE = ("model_name",)
ENGINE = ("model_name", "engine")
# Seconds; those of vLLM's own histogram of the time to the first token.
SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
           80.0, 160.0, 640.0, 2560.0)  # fmt: skip


@dataclass(frozen=True)
class Metric:
    """One metric family; ``merge`` ``counter`` makes it a counter, whose name gets ``_total``.

    ``histogram`` makes it a histogram of seconds.
    """

    name: str
    help: str
    labels: tuple[str, ...] = BASE
    merge: Merge = "max"


METRICS: tuple[Metric, ...] = (
    Metric("vqp_quantization_info", "1; the labels name the quantization.", (*BASE, "method", "scheme")),
    Metric("vqp_kernel_info", "1; the labels name the kernel of a kind of layers, and why it is not this project's.",
           (*BASE, "kernel", "scheme", "why")),
    Metric("vqp_weight_bits", "Nominal bits per weight of the quantized layers."),
    Metric("vqp_checkpoint_bytes", "Bytes of all tensors of the checkpoint on disk."),
    Metric("vqp_weight_bytes", "Weight bytes on the fullest rank, by source (plan, actual).", (*BASE, "source")),
    Metric("vqp_kv_cache_tokens", "Tokens the KV cache holds, by source (plan, plan_low, plan_high, actual).",
           (*BASE, "source")),
    Metric("vqp_load_seconds", "Seconds from the launch until the engine was initialized."),
    Metric("vqp_generation_tokens_per_second", "Generated tokens per second, last 10 s.", ENGINE, "livesum"),
    Metric("vqp_prompt_tokens_per_second", "Computed prompt tokens per second, last 10 s.", ENGINE, "livesum"),
    Metric("vqp_generation_tokens_per_second_per_device", "Generated tokens per second per device, last 10 s.",
           ENGINE, "livesum"),
    Metric("vqp_devices", "Devices of all replicas behind this server."),
    Metric("vqp_headroom_requests", "Full-length requests that fit in the free KV cache.", ENGINE, "mostrecent"),
    Metric("vqp_peak_memory_bandwidth_bytes_per_second", "Peak bandwidth of one device, the base of utilization."),
    Metric("vqp_peak_flops_per_second", "Peak FLOP/s of one device, the base of utilization."),
    Metric("vqp_model_bandwidth_utilization_ratio",
           "Bytes of weights and KV cache read by engine steps over the device's peak, last 10 s.", ENGINE, "livesum"),
    Metric("vqp_model_flops_utilization_ratio",
           "Two operations per weight and token over the device's peak, last 10 s.", ENGINE, "livesum"),
    Metric("vqp_time_to_first_byte_seconds",
           "Seconds from a request's arrival until the first byte of its answer was handed to the connection.",
           (*BASE, "stream"), "histogram"),
    Metric("vqp_slo_ttft_seconds", "Objective for the time to the first byte of an answer."),
    Metric("vqp_slo_tpot_seconds", "Objective for the mean time per output token."),
    Metric("vqp_slo_requests", "Finished requests by result (met, missed) against the objective.",
           (*BASE, "result"), "counter"),
    Metric("vqp_goodput_tokens", "Generated tokens of requests that met the objective.", BASE, "counter"),
    Metric("vqp_energy_joules", "Energy of the devices since the server started, from NVML.", BASE, "counter"),
    Metric("vqp_joules_per_token", "Energy per generated token, last 10 s; absent while idle.", BASE,
           "mostrecent"),
    Metric("vqp_price_per_hour", "Price of all devices per hour, from --price."),
    Metric("vqp_cost_per_million_tokens", "Price of a million generated tokens, last 10 s; absent while idle."),
    Metric("vqp_server_restarts", "Restarts of this server by its supervisor so far."),
    Metric("vqp_server_start_retries", "Starts of this server repeated with smaller memory demands so far."),
)  # fmt: skip

_built: dict[int, dict[str, Gauge | Counter | Histogram]] = {}


def metrics(registry: CollectorRegistry = REGISTRY) -> dict[str, Gauge | Counter | Histogram]:
    """The prometheus_client objects by name, made once per registry and process."""
    if id(registry) not in _built:
        _built[id(registry)] = {metric.name: _build(metric, registry) for metric in METRICS}
    return _built[id(registry)]


def _build(metric: Metric, registry: CollectorRegistry) -> Gauge | Counter | Histogram:
    if metric.merge == "counter":
        return Counter(metric.name, metric.help, metric.labels, registry=registry)
    if metric.merge == "histogram":
        return Histogram(metric.name, metric.help, metric.labels, registry=registry, buckets=SECONDS)
    return Gauge(metric.name, metric.help, metric.labels, registry=registry, multiprocess_mode=metric.merge)
