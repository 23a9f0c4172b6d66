"""The report of the CPU benchmark: ratios, verdicts, and the place in the document."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "cpu_goals.py"


@pytest.fixture(scope="module")
def goals() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cpu_goals", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def report(goals: ModuleType, **times: float) -> dict[str, Any]:
    """Times in microseconds by name_M; W4 and the read loop have 1000 bytes, all others 500."""
    rows = []
    for key, time in times.items():
        name, m = key.rsplit("_", 1)
        size = 1000 if name in ("W4", "read") else 500
        row = {"shape": goals.SHAPE, "threads": 2, "m": int(m), "name": name.replace("_", " "), "bytes": size}
        rows.append(row | {"best_us": time, "median_us": 2 * time})
    return {"machine": {"level": "avx2", "cpus": 2, "load_before": 0.1}, "results": rows}


def lines(text: str) -> dict[str, list[str]]:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return {row[0]: row[1:] for row in rows}


def test_verdicts(goals: ModuleType) -> None:
    found = lines(goals.render(report(goals, W4_1=100, read_1=70, W2_1=50, torch_BF16_1=450)))
    share = found["W4, M = 1: share of the bandwidth of a plain read loop"]
    assert share == [
        "at least 80%",
        "70%",
        "70%",
        "**missed**",
    ]
    assert found["W4, M = 1, against torch BF16"] == ["at least 4.00x", "4.50x", "4.50x", "ok"]
    assert found["W2, M = 1: time over W4's, by the ratio of bytes"] == ["at most 1.15x", "1.00x", "1.00x", "ok"]
    assert found["W8A8, M = 1, against oneDNN INT8"][1] == "not measured: no oneDNN INT8"
    assert found["W4"] == ["100", "0.0"]


def test_other_layers(goals: ModuleType) -> None:
    found = report(goals, W4_1=100, torch_BF16_1=450)
    assert "| layer |" not in goals.render(found)
    found["results"] += [{**row, "shape": "qkv"} for row in found["results"]]
    assert lines(goals.render(found))["qkv"] == ["1", "100", "-", "4.50x", "-"]


def test_place_in_the_document(goals: ModuleType) -> None:
    document = f"a\n{goals.BEGIN}\nold\n{goals.END}\nb\n"
    assert goals.replace_between(document, "new") == f"a\n{goals.BEGIN}\nnew\n{goals.END}\nb\n"
    with pytest.raises(ValueError, match="results: begin"):
        goals.replace_between("no markers", "new")


def test_performance_notes_have_the_place(goals: ModuleType) -> None:
    notes = (FILE.parents[1] / "docs" / "results" / "performance.md").read_text()
    assert "new" in goals.replace_between(notes, "new")
