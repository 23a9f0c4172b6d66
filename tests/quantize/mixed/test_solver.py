"""The knapsack solver against trying everything."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_quant_plugin.quantize.mixed.solver import relaxed_bound, solve, undominated

_OPTION = st.tuples(st.integers(0, 30), st.floats(0, 10, allow_nan=False))
_UNITS = st.lists(st.lists(_OPTION, min_size=1, max_size=4), min_size=1, max_size=5)


def _split(units: list[list[tuple[int, float]]]) -> tuple[list[list[int]], list[list[float]]]:
    return [[c for c, _ in unit] for unit in units], [[v for _, v in unit] for unit in units]


def _best(units: list[list[tuple[int, float]]], budget: int) -> float | None:
    totals = [
        (sum(c for c, _ in picked), sum(v for _, v in picked)) for picked in itertools.product(*units)
    ]  # fmt: skip
    return min((loss for cost, loss in totals if cost <= budget), default=None)


@settings(deadline=None, max_examples=150)
@given(_UNITS, st.integers(0, 120))
def test_is_the_best_there_is(units: list[list[tuple[int, float]]], budget: int) -> None:
    costs, losses = _split(units)
    expected, found = _best(units, budget), solve(costs, losses, budget)
    if expected is None:
        assert found is None
        return
    assert found is not None
    assert found.exact
    assert found.loss == pytest.approx(expected)
    assert found.cost == sum(c[i] for c, i in zip(costs, found.choice, strict=True)) <= budget
    assert found.loss == pytest.approx(sum(v[i] for v, i in zip(losses, found.choice, strict=True)))
    assert relaxed_bound(costs, losses, budget) <= expected + 1e-9


def test_thinned_states_stay_feasible_and_say_how_far_off_they_may_be() -> None:
    generator = np.random.default_rng(0)
    costs = generator.integers(100, 10_000, (40, 5)).tolist()
    losses = [sorted(row, reverse=True) for row in generator.random((40, 5)).tolist()]
    costs = [sorted(row) for row in costs]
    budget = 40 * 4000
    exact, rough = solve(costs, losses, budget), solve(costs, losses, budget, max_states=50)
    assert exact is not None
    assert rough is not None
    assert exact.exact
    assert not rough.exact
    assert rough.cost <= budget
    assert rough.bound <= exact.loss <= rough.loss
    assert rough.loss < 1.2 * exact.loss


def test_dominated_options_are_dropped() -> None:
    costs, losses = np.array([5, 1, 3, 3, 7]), np.array([1.0, 4.0, 5.0, 2.0, 1.0])
    assert undominated(costs, losses).tolist() == [1, 3, 0]
