"""Writes ``grafana.json`` from the panels below: ``python -m vllm_quant_serve.dashboards.build``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
DASHBOARD = FOLDER / "grafana.json"
RULES = FOLDER / "alerts.yml"


@dataclass(frozen=True)
class Panel:
    """One panel: queries with their legends, and the unit as Grafana spells it.

    ``gpu`` marks figures that exist only on GPUs of known rates, ``optional`` the flag that a figure needs.
    """

    title: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    gpu: bool = False
    optional: str = ""


_MODEL = 'model_name=~"$model"'


def _mean(metric: str) -> str:
    return " / ".join(f"sum(rate({metric}_{part}{{{_MODEL}}}[$__rate_interval]))" for part in ("sum", "count"))


def _p95(metric: str) -> str:
    return f"histogram_quantile(0.95, sum by (le) (rate({metric}_bucket{{{_MODEL}}}[$__rate_interval])))"


PANELS: tuple[Panel, ...] = (
    Panel("State", (("vqp_server_state == 1", "{{state}}"),), kind="stat", width=4),
    Panel("Quantization", ((f"vqp_quantization_info{{{_MODEL}}}", "{{scheme}}"),), kind="stat", width=4),
    Panel("Generated tokens/s", ((f"sum(vqp_generation_tokens_per_second{{{_MODEL}}})", "all"),), kind="stat", width=4),
    Panel("In flight", (("sum(vqp_requests_in_flight)", "requests"),), kind="stat", width=4),
    Panel("Headroom", ((f"sum(vqp_headroom_requests{{{_MODEL}}})", "full-length requests"),), kind="stat", width=4),
    Panel("Load time", (("vqp_start_seconds", "seconds"),), "s", "stat", 4),
    Panel("KV tokens: plan against actual", ((f"vqp_kv_cache_tokens{{{_MODEL}}}", "{{source}}"),)),
    Panel("Weight bytes per rank: plan against actual", ((f"vqp_weight_bytes{{{_MODEL}}}", "{{source}}"),), "bytes"),
    Panel(
        "KV tokens, actual over plan",
        ((f'vqp_kv_cache_tokens{{source="actual",{_MODEL}}} / ignoring(source) '
          f'vqp_kv_cache_tokens{{source="plan",{_MODEL}}}', "ratio"),),
        "percentunit",
    ),
    Panel("Tokens per second", (
        (f"sum by (engine) (vqp_generation_tokens_per_second{{{_MODEL}}})", "generated, engine {{engine}}"),
        (f"sum by (engine) (vqp_prompt_tokens_per_second{{{_MODEL}}})", "prompt, engine {{engine}}"),
    )),
    Panel("Generated tokens per second and device",
          ((f"sum(vqp_generation_tokens_per_second_per_device{{{_MODEL}}})", "per device"),)),
    Panel("Requests", (
        (f"sum(vllm:num_requests_running{{{_MODEL}}})", "running"),
        (f"sum(vllm:num_requests_waiting{{{_MODEL}}})", "waiting"),
    )),
    Panel("Time to first byte", (
        (_mean("vqp_time_to_first_byte_seconds"), "mean"), (_p95("vqp_time_to_first_byte_seconds"), "p95"),
    ), "s"),
    Panel("Time per output token", (
        (_mean("vllm:request_time_per_output_token_seconds"), "mean"),
        (_p95("vllm:request_time_per_output_token_seconds"), "p95"),
    ), "s"),
    Panel("KV cache in use", ((f"vllm:kv_cache_usage_perc{{{_MODEL}}}", "engine {{engine}}"),), "percentunit"),
    Panel("Utilization of the peaks", (
        (f"vqp_model_bandwidth_utilization_ratio{{{_MODEL}}}", "memory bandwidth"),
        (f"vqp_model_flops_utilization_ratio{{{_MODEL}}}", "arithmetic"),
    ), "percentunit", gpu=True),
    Panel("Joules per generated token",
          ((f"sum(rate(vqp_energy_joules_total{{{_MODEL}}}[$__rate_interval])) / "
            f"sum(rate(vllm:generation_tokens_total{{{_MODEL}}}[$__rate_interval]))", "J/token"),), "joule", gpu=True),
    Panel("Cost per million generated tokens",
          ((f"sum(vqp_price_per_hour{{{_MODEL}}}) / 3600 / "
            f"sum(rate(vllm:generation_tokens_total{{{_MODEL}}}[$__rate_interval])) * 1e6", "cost"),),
          optional="--price"),
    Panel("Goodput: requests that met the objective",
          ((f'sum(rate(vqp_slo_requests_total{{result="met",{_MODEL}}}[$__rate_interval])) / '
            f"sum(rate(vqp_slo_requests_total{{{_MODEL}}}[$__rate_interval]))", "met"),), "percentunit",
          optional="--slo-ttft"),
    Panel("Goodput tokens per second",
          ((f"sum(rate(vqp_goodput_tokens_total{{{_MODEL}}}[$__rate_interval]))", "tokens/s"),), optional="--slo-ttft"),
    Panel("Restarts, hangs, retries", (
        ("vqp_restarts_total", "restarts"), ("vqp_hangs_total", "hangs"), ("vqp_start_retries_total", "retries"),
    )),
    Panel("Start-up failures", (("sum by (cause) (vqp_start_failures_total)", "{{cause}}"),)),
    Panel("Drains", (("sum by (result) (vqp_drains_total)", "{{result}}"),)),
)  # fmt: skip

_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


def build() -> dict[str, Any]:
    """The dashboard as Grafana imports it (schema of Grafana 10)."""
    panels: list[dict[str, Any]] = []
    x = y = 0
    row_height = 0
    for number, panel in enumerate(PANELS, 1):
        height = 4 if panel.kind == "stat" else 7
        if x + panel.width > 24:
            x, y, row_height = 0, y + row_height, 0
        targets = [
            {"refId": chr(65 + index), "expr": query, "legendFormat": legend, "datasource": _DATASOURCE}
            for index, (query, legend) in enumerate(panel.queries)
        ]
        notes = ["GPUs of known rates"] if panel.gpu else []
        notes += [f"needs {panel.optional}"] if panel.optional else []
        panels.append({
            "id": number, "title": panel.title, "type": panel.kind, "description": "; ".join(notes),
            "datasource": _DATASOURCE, "targets": targets,
            "gridPos": {"x": x, "y": y, "w": panel.width, "h": height},
            "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
            "options": {"textMode": "value_and_name"} if panel.kind == "stat" else {},
        })  # fmt: skip
        x, row_height = x + panel.width, max(row_height, height)
    variables = [
        {"name": "datasource", "type": "datasource", "query": "prometheus"},
        {"name": "model", "type": "query", "datasource": _DATASOURCE, "includeAll": True, "multi": True,
         "allValue": ".*", "current": {"text": "All", "value": "$__all"}, "refresh": 2,
         "query": {"query": "label_values(vqp_quantization_info, model_name)", "refId": "model"}},
    ]  # fmt: skip
    return {
        "title": "vllm-quant serve", "uid": "vllm-quant-serve", "schemaVersion": 39, "version": 1, "refresh": "10s",
        "tags": ["vllm", "quantization"], "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": variables}, "panels": panels,
    }  # fmt: skip


if __name__ == "__main__":
    DASHBOARD.write_text(json.dumps(build(), indent=1) + "\n", "utf-8")
