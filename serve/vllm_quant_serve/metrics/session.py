"""The session's own metrics, on the admin app's ``/metrics``: available while the server loads and when it is dead."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from vllm_quant_serve.supervise.failures import Cause
from vllm_quant_serve.supervise.session import Session
from vllm_quant_serve.supervise.state import State


class SessionCollector:
    """Reads a session at each scrape. Counters of known causes start at 0; what is unknown is absent."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def collect(self) -> Iterable[Metric]:
        session, counts = self.session, self.session.counts
        state = GaugeMetricFamily("vqp_server_state", "1 for the state the server is in.", labels=["state"])
        for candidate in State:
            state.add_metric([candidate.value], float(session.state is candidate))
        yield state
        ready = float(session.state is State.READY)
        yield GaugeMetricFamily("vqp_server_ready", "1 while requests are served.", ready)
        failures = CounterMetricFamily("vqp_start_failures", "Failed starts by cause.", labels=["cause"])
        for cause in Cause:
            failures.add_metric([cause.value], counts.start_failures.get(cause.value, 0))
        yield failures
        yield CounterMetricFamily("vqp_start_retries", "Starts repeated with smaller memory demands.", counts.retries)
        yield CounterMetricFamily("vqp_restarts", "Starts after the server died or hung.", counts.restarts)
        yield CounterMetricFamily("vqp_hangs", "Times the watchdog found the engine hung.", counts.hangs)
        drains = CounterMetricFamily("vqp_drains", "Drains by result (clean, cut).", labels=["result"])
        for result in ("clean", "cut"):
            drains.add_metric([result], counts.drains.get(result, 0))
        yield drains
        if session.load_seconds is not None:
            yield GaugeMetricFamily("vqp_start_seconds", "Seconds from the launch until ready.", session.load_seconds)
        if session.server is not None and session.server.alive:
            yield GaugeMetricFamily("vqp_requests_in_flight", "Requests being answered.", session.in_flight())
