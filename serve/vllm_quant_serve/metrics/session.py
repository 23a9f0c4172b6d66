"""The supervisor's own metrics, on the admin app's ``/metrics``; they answer while the server loads or is dead."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from vllm_quant_serve.supervise.failures import Cause
from vllm_quant_serve.supervise.state import State

if TYPE_CHECKING:
    from vllm_quant_serve.supervise.session import Session


class SessionCollector:
    """Reads the supervisor at each scrape. Counters of known causes start at 0; what is unknown is absent."""

    def __init__(self, supervisor: Session) -> None:
        self.supervisor = supervisor

    def collect(self) -> Iterable[Metric]:
        one = self.supervisor
        state = GaugeMetricFamily("vqp_server_state", "1 for the state the server is in.", labels=["state"])
        for candidate in State:
            state.add_metric([candidate.value], float(one.state is candidate))
        yield state
        yield GaugeMetricFamily("vqp_server_ready", "1 when requests are served.", float(one.state is State.READY))
        counts = one.counts
        failures = CounterMetricFamily("vqp_start_failures", "Failed start-ups by cause.", labels=["cause"])
        for cause in Cause:
            failures.add_metric([cause.value], counts.start_failures.get(cause.value, 0))
        yield failures
        yield CounterMetricFamily("vqp_start_retries", "Start-ups repeated with smaller demands.", counts.retries)
        yield CounterMetricFamily("vqp_restarts", "Start-ups after a dead or hung server.", counts.restarts)
        yield CounterMetricFamily("vqp_hangs", "Times the watchdog found the engine hung.", counts.hangs)
        drains = CounterMetricFamily("vqp_drains", "Drains by result.", labels=["result"])
        for result in ("clean", "cut"):
            drains.add_metric([result], counts.drains.get(result, 0))
        yield drains
        if one.load_seconds is not None:
            yield GaugeMetricFamily("vqp_start_seconds", "Seconds from launch until ready.", one.load_seconds)
        if one.server is not None and one.server.alive:
            yield GaugeMetricFamily("vqp_requests_in_flight", "Requests being answered.", one.in_flight())
