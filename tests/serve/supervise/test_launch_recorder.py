"""A launch is kept for later plans: plan and actual figures, but not those of a start-up that was relaxed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest

import vllm_quant_plugin
from vllm_quant_serve.plan.api import Plan, PlanRequest, make_plan
from vllm_quant_serve.plan.memory.ledger import accuracy
from vllm_quant_serve.supervise.actuals import Actuals
from vllm_quant_serve.supervise.launch_recorder import launch_recorder
from vllm_quant_serve.supervise.report import Report
from vllm_quant_serve.supervise.state import Counts

BUNDLED = Path(vllm_quant_plugin.__file__).parent / "data" / "stdlib-llama"


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "state" / "launches.sqlite"
    monkeypatch.setenv("VQP_LEDGER", str(path))
    return path


def plan() -> Plan:
    return make_plan(PlanRequest(str(BUNDLED), gpu=("h100",), max_model_len=256))


def launched(tokens: int | None, retries: int = 0) -> SimpleNamespace:
    """A supervisor whose server has just become ready."""
    return SimpleNamespace(actuals=Actuals(kv_tokens=tokens), counts=Counts(retries=retries), load_seconds=3.5,
                           report=Report(as_json=True))  # fmt: skip


def test_a_launch_is_kept(book: Path) -> None:
    made = plan()
    asyncio.run(launch_recorder(made)(launched(made.kv_tokens.value)))  # type: ignore[arg-type]
    (figure,) = accuracy(book)
    assert (figure.launches, figure.worst) == (1, 0.0)


def test_what_teaches_nothing_is_not_kept(book: Path) -> None:
    asyncio.run(launch_recorder(plan())(launched(None)))  # type: ignore[arg-type]
    asyncio.run(launch_recorder(plan())(launched(1000, retries=1)))  # type: ignore[arg-type]
    assert not book.exists()


def test_a_ledger_that_cannot_be_written_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VQP_LEDGER", "/dev/null/launches.sqlite")
    one = launched(1000)
    asyncio.run(launch_recorder(plan())(one))  # type: ignore[arg-type]
    assert "VQP_LEDGER" in one.report.history[-1]["message"]
