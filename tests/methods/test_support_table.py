"""docs/reference/support.md is the matrix that the tests run, beside what vLLM serves alone."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.matrix import CELLS

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/reference/support.md"


@pytest.fixture
def why_humming_rejects(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("humming_support").why_humming_rejects


def test_page_is_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "scripts/support_table.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_every_cell_has_a_line() -> None:
    lines = PAGE.read_text("utf-8").splitlines()
    rows = [line for line in lines if line.startswith("| ") and not line.startswith("| method")]
    assert len(rows) == len(CELLS)
    for cell, row in zip(CELLS, rows, strict=True):
        assert row.startswith(f"| {cell.family} | {cell.variant} |")
        assert len(row.split("|")) == 11


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"bits": 3, "sym": False, "checkpoint_format": "gptq_v2"}, None),
        ({"sym": False}, "v1 zero points"),
        ({"desc_act": True}, "act-order"),
        ({"group_size": -1}, "group_size"),
        ({"dynamic": {"-:.*o_proj.*": {}}}, None),
        ({"dynamic": {"+:.*o_proj.*": {"sym": False}}}, "v1 zero points"),
        ({"quant_method": "gguf"}, "gguf"),
    ],
)
def test_humming_on_gptq(why_humming_rejects: Any, changes: dict[str, Any], reason: str | None) -> None:
    config = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "checkpoint_format": "gptq", **changes}
    found = why_humming_rejects(config)
    assert found is None if reason is None else reason in found
    assert "lm_head" in why_humming_rejects(config, quantized_lm_head=True)
