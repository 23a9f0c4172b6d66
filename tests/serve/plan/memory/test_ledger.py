"""The closed loop: launches are recorded, errors reported, intervals narrowed."""

import dataclasses
import sqlite3

import pytest

from vllm_quant_plugin.errors import OutputError
from vllm_quant_serve.plan.api import PlanRequest, make_plan
from vllm_quant_serve.plan.memory import ledger
from vllm_quant_serve.plan.search.context import installed_version
from vllm_quant_serve.plan.types import Interval

MIB = 1 << 20


@pytest.fixture
def book(tmp_path, monkeypatch):
    path = tmp_path / "state" / "launches.sqlite"
    monkeypatch.setenv("VQP_LEDGER", str(path))
    return path


def launch(plan, more_overhead: int, tokens_off: float = 0.0) -> None:
    """A launch whose engine used ``more_overhead`` bytes more than planned."""
    kv = plan.kv_bytes.value - more_overhead
    actuals = {
        "weight_bytes": plan.weight_bytes_per_rank,
        "kv_bytes": kv,
        "kv_tokens": int(plan.kv_tokens.value * (1 + tokens_off)),
    }
    ledger.record_launch(plan, actuals, vllm=installed_version(), load_seconds=12.5)


def test_nothing_recorded_changes_nothing(book, model_folder):
    plan = make_plan(PlanRequest(model_folder("llama-3.1-8b"), gpu=("h100",)))
    assert ledger.accuracy() == []
    assert not book.exists()
    assert plan.overhead_bytes.low < plan.overhead_bytes.value < plan.overhead_bytes.high


def test_three_launches_move_and_narrow_the_interval(book, model_folder):
    request = PlanRequest(model_folder("llama-3.1-8b"), gpu=("h100",))
    first = make_plan(request)
    for more in (300 * MIB, 310 * MIB):
        launch(first, more)
    assert make_plan(request).overhead_bytes == first.overhead_bytes  # two are too few
    launch(first, 320 * MIB)
    later = make_plan(request)
    assert later.overhead_bytes.value == first.overhead_bytes.value + 310 * MIB
    assert later.overhead_bytes.high - later.overhead_bytes.low == 20 * MIB + 2 * ledger.MARGIN
    assert later.kv_tokens.high - later.kv_tokens.low < first.kv_tokens.high - first.kv_tokens.low
    assert any("3 recorded launches" in note for note in later.notes)


def test_launches_of_another_device_do_not_count(book, model_folder):
    folder = model_folder("llama-3.1-8b")
    plan = make_plan(PlanRequest(folder, gpu=("h100",)))
    for _ in range(3):
        launch(plan, 500 * MIB)
    other = make_plan(PlanRequest(folder, gpu=("h200",)))
    assert not any("recorded launches" in note for note in other.notes)


def test_pinned_caches_tell_nothing_of_overheads(book, model_folder):
    request = PlanRequest(model_folder("llama-3.2-1b"), cpu_memory=32 << 30, max_model_len=4096)
    for _ in range(3):
        launch(make_plan(request), 0)
    plan = make_plan(request)
    assert ledger.residuals(installed_version(), plan.device, plan.architecture) == ()


def test_accuracy_is_absolute_never_signed(book, model_folder):
    plan = make_plan(PlanRequest(model_folder("llama-3.1-8b"), gpu=("h100",)))
    for off in (0.1, -0.1, 0.25):
        launch(plan, 0, off)
    by_figure = {one.figure: one for one in ledger.accuracy()}
    assert by_figure["weights per rank"].worst == 0
    tokens = by_figure["KV tokens, estimated"]
    assert tokens.launches == 3
    assert tokens.mean == pytest.approx((1 / 11 + 1 / 9 + 0.2) / 3, rel=1e-3)
    assert tokens.p95 == tokens.worst == pytest.approx(0.2, rel=1e-3)


def test_figures_that_were_not_told_are_absent(book, model_folder):
    plan = make_plan(PlanRequest(model_folder("llama-3.1-8b"), gpu=("h100",)))
    ledger.record_launch(plan, {"kv_tokens": plan.kv_tokens.value}, vllm="0.32.0")
    assert [one.figure for one in ledger.accuracy()] == ["KV tokens, estimated"]


def test_blocks_are_kept_and_a_ledger_of_an_earlier_version_grows(book, model_folder):
    plan = make_plan(PlanRequest(model_folder("llama-3.1-8b"), gpu=("h100",)))
    book.parent.mkdir(parents=True)
    with sqlite3.connect(book) as old:
        columns = ", ".join(name for name in ledger._COLUMNS if "blocks" not in name)
        old.execute(f"CREATE TABLE launches ({columns})")
    ledger.record_launch(plan, {"kv_blocks": plan.kv_blocks * 2}, vllm="0.32.0")
    (found,) = ledger.accuracy()
    assert (found.figure, found.launches, found.worst) == ("KV blocks, estimated", 1, 0.5)


def test_a_damaged_ledger_does_not_stop_a_plan(book, model_folder):
    book.parent.mkdir(parents=True)
    book.write_text("no database")
    plan = make_plan(PlanRequest(model_folder("llama-3.1-8b"), gpu=("h100",)))
    assert ledger.accuracy() == []
    with pytest.raises(OutputError, match="cannot be used"):
        ledger.record_launch(plan, {}, vllm="0.32.0")


def test_narrowing_keeps_the_order_of_the_interval():
    found = ledger.narrowed(Interval(100 * MIB, 200 * MIB, 400 * MIB), (-(10**12), 0, 5))
    assert 0 <= found.low <= found.value <= found.high
    assert dataclasses.astuple(ledger.narrowed(Interval(1, 2, 3), (5, 6))) == (1, 2, 3)
