"""Budgets, candidates and allocation on the bundled model's shapes."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_quant_plugin.checkpoint import read_checkpoint
from vllm_quant_plugin.errors import UsageError
from vllm_quant_plugin.formats.fused import siblings
from vllm_quant_plugin.quantize.api import make_recipe
from vllm_quant_plugin.quantize.mixed.allocation import (
    Unit,
    allocate,
    budget_bytes,
    candidate_schemes,
    find_units,
    require_feasible,
)
from vllm_quant_plugin.quantize.mixed.api import make_target
from vllm_quant_plugin.quantize.mixed.recipe_file import read_lines
from vllm_quant_plugin.quantize.modules import check_input
from vllm_quant_plugin.quantize.options import MixedOptions, SchemeOptions
from vllm_quant_plugin.text.windows import BUNDLED


@pytest.fixture(scope="module")
def units() -> list[Unit]:
    return find_units(check_input(read_checkpoint(BUNDLED)))


def test_units_are_what_vllm_fuses(units: list[Unit]) -> None:
    assert len(units) == 8 * 4
    assert [m.name.rpartition(".")[2] for m in units[0].modules] == ["down_proj"]
    sizes = sorted(len(u.modules) for u in units[:4])
    assert sizes == [1, 1, 2, 3]
    for unit in units:
        assert {m.name for m in unit.modules} == set(siblings(unit.modules[0].name))


@pytest.mark.parametrize("method", ["rtn", "gptq", "awq"])
@pytest.mark.parametrize("bpw", [2.8, 3.5, 5.0])
def test_allocation_uses_the_budget_and_beats_uniform(units: list[Unit], method: str, bpw: float) -> None:
    candidates = candidate_schemes(make_recipe(method), units)
    # Sensitivities that differ by unit and fall by 4 a bit, as rounding errors do.
    losses = [[(1 + i % 7) * 4.0**-c.bits * (1 + c.group_size / 256) for c in candidates] for i in range(len(units))]
    budget = budget_bytes(units, 0, bpw, None)
    require_feasible(units, candidates, budget)
    found = allocate(units, candidates, losses, budget)
    used = sum(u.stored_bytes(found.schemes[u.modules[0].name]) for u in units)
    assert used == found.solution.cost <= budget
    assert used > 0.97 * budget
    assert found.solution.exact
    assert found.uniform is not None
    assert found.uniform_cost <= budget
    assert found.solution.loss < found.uniform_loss
    for unit in units:
        assert len({found.schemes[m.name] for m in unit.modules}) == 1


def test_a_size_counts_what_is_not_quantized(units: list[Unit]) -> None:
    total = read_checkpoint(BUNDLED).nbytes
    dense = sum(u.stored_bytes(None) for u in units)
    assert budget_bytes(units, total, None, total) == dense
    with pytest.raises(UsageError, match="leaves"):
        require_feasible(units, candidate_schemes(make_recipe("rtn"), units), budget_bytes(units, total, None, 1 << 20))


def test_flags_that_exclude_each_other(tmp_path) -> None:
    with pytest.raises(UsageError, match="exclude"):
        make_target(MixedOptions(target_bpw=3.5, target_size="4GB"), SchemeOptions())
    with pytest.raises(UsageError, match="--recipe"):
        make_target(MixedOptions(target_bpw=3.5, recipe_file=Path("r.yaml")), SchemeOptions())
    with pytest.raises(UsageError, match="--bits"):
        make_target(MixedOptions(target_bpw=3.5), SchemeOptions(bits=4))
    with pytest.raises(UsageError, match="out of range"):
        budget_bytes([], 0, 17.0, None)
    (tmp_path / "r.yaml").write_text("method: rtn\nmlp: 4\n")
    with pytest.raises(UsageError, match="has method rtn"):
        read_lines(tmp_path / "r.yaml", "gptq", "awq")
    assert read_lines(tmp_path / "r.yaml", None, "awq") == ("rtn", {"mlp": 4})


def test_methods_of_one_width_have_no_target(units: list[Unit]) -> None:
    with pytest.raises(UsageError, match="one bit-width"):
        candidate_schemes(make_recipe("fp8"), units)
