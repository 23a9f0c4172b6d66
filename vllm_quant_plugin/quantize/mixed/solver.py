"""One option for each unit so that the total loss is least within a budget: the multiple-choice knapsack problem.

The exact answer comes from dynamic programming over undominated partial sums (Nemhauser and Ullmann, 1969): of two
with equal cost only the better is kept, and of two with equal loss only the cheaper. Where more states would be
needed than ``max_states``, they are thinned out, and the distance to the bound of the linear relaxation
(Sinha and Zoltners, 1979) says how far the answer can be from the best one. No torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MAX_STATES = 100_000


@dataclass(frozen=True)
class Solution:
    """The answer.

    Attributes:
        choice: index of the chosen option of each unit.
        cost, loss: in all.
        bound: no choice within the budget has a smaller loss.
        exact: the choice was proven to be the best one.
    """

    choice: tuple[int, ...]
    cost: int
    loss: float
    bound: float
    exact: bool


def undominated(costs: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Indices, by growing cost, of the options than which none is both cheaper and better."""
    order = np.lexsort((losses, costs))
    best = np.minimum.accumulate(losses[order])
    keep = np.ones(len(order), dtype=bool)
    keep[1:] = losses[order][1:] < best[:-1]
    return order[keep]


def relaxed_bound(costs: Sequence[Sequence[int]], losses: Sequence[Sequence[float]], budget: int) -> float:
    """The least loss when units may take mixtures of two options: a lower bound of the whole problem.

    Each unit starts at its cheapest option; the steps along the lower convex hulls are taken by falling gain per
    cost until the budget is used up, the last one in part.
    """
    total, left, steps = 0.0, float(budget), []
    for cost, loss in zip(costs, losses, strict=True):
        c, v = np.asarray(cost, dtype=np.int64), np.asarray(loss, dtype=np.float64)
        index = undominated(c, v)
        hull: list[int] = []
        for i in index:
            while len(hull) > 1 and _above(c, v, hull[-2], hull[-1], int(i)):
                hull.pop()
            hull.append(int(i))
        total += float(v[hull[0]])
        left -= float(c[hull[0]])
        for a, b in itertools.pairwise(hull):
            steps.append((float(v[a] - v[b]), float(c[b] - c[a])))
    steps.sort(key=lambda step: -step[0] / step[1])
    for gain, price in steps:
        share = min(1.0, left / price) if left > 0 else 0.0
        if share <= 0:
            break
        total -= gain * share
        left -= price * share
    return total


def _above(c: np.ndarray, v: np.ndarray, a: int, b: int, d: int) -> bool:
    """Whether point b lies on or above the line from a to d."""
    return bool((v[b] - v[a]) * (c[d] - c[a]) >= (v[d] - v[a]) * (c[b] - c[a]))


def _thin(costs: np.ndarray, limit: int) -> np.ndarray:
    """Indices of at most ``limit`` states, the cheapest of each equal stretch of cost."""
    if len(costs) <= limit:
        return np.arange(len(costs))
    cell = (costs - costs[0]) * limit // (costs[-1] - costs[0] + 1)
    return np.flatnonzero(np.diff(cell, prepend=-1))


def solve(
    costs: Sequence[Sequence[int]],
    losses: Sequence[Sequence[float]],
    budget: int,
    *,
    max_states: int = MAX_STATES,
) -> Solution | None:
    """Choose one option for each unit.

    Args:
        costs: per unit and option; whole numbers.
        losses: per unit and option.
        budget: the largest total cost.

    Returns:
        None when even the cheapest options cost more than the budget.
    """
    cheapest = [min(cost) for cost in costs]
    rest = sum(cheapest)
    if rest > budget:
        return None
    state_costs, state_losses = np.zeros(1, dtype=np.int64), np.zeros(1)
    trail: list[tuple[np.ndarray, np.ndarray]] = []
    exact = True
    for cost, loss, least in zip(costs, losses, cheapest, strict=True):
        rest -= least
        options = len(cost)
        c = (state_costs[:, None] + np.asarray(cost, dtype=np.int64)[None, :]).reshape(-1)
        v = (state_losses[:, None] + np.asarray(loss, dtype=np.float64)[None, :]).reshape(-1)
        index = np.flatnonzero(c + rest <= budget)
        index = index[undominated(c[index], v[index])]
        kept = _thin(c[index], max_states)
        exact = exact and len(kept) == len(index)
        index = index[kept]
        state_costs, state_losses = c[index], v[index]
        trail.append((index // options, index % options))
    best = int(np.argmin(state_losses))
    choice, at = [], best
    for parents, options_taken in reversed(trail):
        choice.append(int(options_taken[at]))
        at = int(parents[at])
    total = float(state_losses[best])
    bound = total if exact else min(total, relaxed_bound(costs, losses, budget))
    return Solution(tuple(reversed(choice)), int(state_costs[best]), total, bound, exact)
