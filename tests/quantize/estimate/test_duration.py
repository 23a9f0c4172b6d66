"""How long a run will take, on a machine whose clock the test moves."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from vllm_quant_plugin.checkpoint import read_checkpoint
from vllm_quant_plugin.quantize.api import make_recipe, preflight
from vllm_quant_plugin.quantize.estimate.cost import estimate_seconds
from vllm_quant_plugin.quantize.estimate.preflight import summary
from vllm_quant_plugin.quantize.estimate.speed import REFERENCE_SECONDS, Speed, SpeedRange, measure_speed
from vllm_quant_plugin.quantize.modules import check_input


class _Machine:
    """Idle it does 50 GFLOP/s; ``loads`` says by what factor it is slower, one for each piece of work."""

    def __init__(self, loads: Iterator[float]) -> None:
        self.now, self.loads = 100.0, loads

    def clock(self) -> float:
        return self.now

    def multiply(self) -> float:
        self.now += 1e9 / 5e10 * next(self.loads)
        return 1e9

    def round_weights(self) -> float:
        self.now += 1e6 * REFERENCE_SECONDS * next(self.loads)
        return 1e6

    def measure(self) -> SpeedRange:
        return measure_speed(self.multiply, self.round_weights, self.clock)


def test_the_measurement_ends_in_time_and_sees_the_load() -> None:
    idle = _Machine(itertools.repeat(1.0))
    found = idle.measure()
    assert idle.now - 100 < 3
    assert found.fast == found.slow == Speed(pytest.approx(5e10), pytest.approx(1.0))
    busy = _Machine(itertools.repeat(4.0)).measure()
    assert busy.slow == Speed(pytest.approx(5e10 / 4), pytest.approx(4.0))


def test_a_load_that_comes_and_goes_widens_the_range() -> None:
    machine = _Machine(itertools.cycle([1.0] * 20 + [5.0] * 20))
    found = machine.measure()
    assert found.slow.flops < found.fast.flops
    assert found.fast.slowness < found.slow.slowness


@pytest.mark.parametrize("method", ["gptq", "awq", "int8", "rtn"])
@pytest.mark.parametrize("load", [1.0, 3.0, 10.0])
def test_what_a_run_takes_lies_in_the_interval(small_model: Path, tmp_path: Path, method: str, load: float) -> None:
    recipe, checkpoint = make_recipe(method), read_checkpoint(small_model)
    modules = check_input(checkpoint)
    # A run that costs what the model of costs says, and one that costs half as much more.
    idle = estimate_seconds(checkpoint, modules, recipe, 10**6, Speed(5e10, 1.0))
    measured = _Machine(itertools.cycle([0.8 * load, 1.2 * load])).measure()
    found = preflight(small_model, tmp_path / "out", recipe, measured=measured).seconds
    assert found is not None
    assert found.low < idle * load < idle * load * 1.5 < found.high


def test_the_estimate_scales_with_speed_and_text(small_model: Path) -> None:
    checkpoint = read_checkpoint(small_model)
    modules, recipe = check_input(checkpoint), make_recipe("gptq", level="3bit")
    at = [estimate_seconds(checkpoint, modules, recipe, 10**6, Speed(1e10 / load, load)) for load in (1, 7)]
    assert at[1] == pytest.approx(7 * at[0])
    # Faster matrix products leave what is read, written and searched.
    faster = estimate_seconds(checkpoint, modules, recipe, 10**6, Speed(2e10, 1.0))
    assert faster < at[0] < 2 * faster
    more = make_recipe("gptq", level="3bit", samples=256)
    assert estimate_seconds(checkpoint, modules, more, 10**6, Speed(1e10, 1.0)) > at[0]


def test_the_dry_run_says_from_when_to_when(small_model: Path, tmp_path: Path) -> None:
    measured = SpeedRange(Speed(5e10, 1.0), Speed(1e9, 20.0))
    plan = preflight(small_model, tmp_path / "out", make_recipe("gptq"), measured=measured)
    stored = plan.to_json()["seconds"]
    assert 0 < stored["low"] < stored["high"]
    assert "measured just now" in summary(plan)
    unmeasured = preflight(small_model, tmp_path / "out", make_recipe("gptq"))
    assert unmeasured.to_json()["seconds"] is None
    assert "measured" not in summary(unmeasured)
