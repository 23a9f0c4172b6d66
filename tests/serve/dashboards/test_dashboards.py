"""The dashboard and the alert rules as files: in step with their source, and only of metrics that exist."""

from __future__ import annotations

import json
import re

import yaml

from vllm_quant_serve.dashboards.build import DASHBOARD, PANELS, RULES, build
from vllm_quant_serve.metrics.catalogue import METRICS
from vllm_quant_serve.metrics.session import SessionCollector
from vllm_quant_serve.supervise.state import Counts, State

METRIC = re.compile(r"\b(vqp_\w+)")


def exported() -> set[str]:
    """Sample names of everything this package exports."""
    from types import SimpleNamespace

    ends = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
    names = {metric.name + end for metric in METRICS for end in ends.get(metric.merge, ("",))}
    server = SimpleNamespace(alive=True)
    supervisor = SimpleNamespace(
        state=State.READY, counts=Counts(), load_seconds=1.0, server=server, in_flight=lambda: 0
    )
    for family in SessionCollector(supervisor).collect():  # type: ignore[arg-type]
        names |= {sample.name for sample in family.samples}
    return names


def test_the_dashboard_is_in_step_with_its_source() -> None:
    assert json.loads(DASHBOARD.read_text("utf-8")) == build(), "run python -m vllm_quant_serve.dashboards.build"


def test_panels_do_not_overlap() -> None:
    cells = set()
    for panel in build()["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        covered = {(x, y) for x in range(place["x"], place["x"] + place["w"])
                   for y in range(place["y"], place["y"] + place["h"])}  # fmt: skip
        assert not cells & covered, panel["title"]
        cells |= covered


def test_only_metrics_that_exist_are_asked_for() -> None:
    known = exported()
    rules = [rule["expr"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    queries = [query for panel in PANELS for query, _ in panel.queries]
    for expression in (*rules, *queries):
        assert set(METRIC.findall(expression)) <= known, expression
