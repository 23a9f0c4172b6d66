"""What each unit costs in KL divergence when it alone is quantized, measured layer by layer.

The model runs once, one decoder layer in memory at a time. At a unit's layer its weights are replaced by those of a
candidate scheme, and the hidden states that come out are carried on beside the original's as a branch of their own;
behind the last layer every branch's distribution is compared with the original's. That the sum over units predicts
the whole model is the linearity that HIGGS (Malinovskii et al., 2024, arXiv:2411.17525) states for small errors.

One scheme per bit-width is measured so (fewer where the branches would not fit). Another group size of the same bits
is scaled by the ratio of the output errors tr(D H D^T) of round-to-nearest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from vllm_quant_plugin.checkpoint import Checkpoint
from vllm_quant_plugin.console import Progress
from vllm_quant_plugin.errors import BackendError
from vllm_quant_plugin.quantize.algorithms.rtn import quantize_weight
from vllm_quant_plugin.quantize.engine.layered_model import LayeredModel, run_layer
from vllm_quant_plugin.quantize.engine.statistics import (
    Moments,
    collect_moments,
    find_groups,
    relative_error,
    weight_of,
)
from vllm_quant_plugin.quantize.mixed.allocation import Unit
from vllm_quant_plugin.quantize.recipe import Recipe
from vllm_quant_plugin.schemes import StoredScheme

# Memory for the branches' hidden states.
BRANCH_BYTES = 2 << 30
# What lies between is scaled from the nearest of these.
MEASURED_BITS = (2, 3, 4, 8)
Batches = list[torch.Tensor]


class _Branches:
    """Hidden states of the model with one unit quantized, by (unit, candidate)."""

    def __init__(self) -> None:
        self.hidden: dict[tuple[int, int], Batches] = {}

    def advance(self, layer: nn.Module, kwargs: Mapping[str, Any], keys: Sequence[tuple[int, int]]) -> None:
        for key in keys:
            self.hidden[key] = [run_layer(layer, hidden, kwargs) for hidden in self.hidden[key]]


def measured_candidates(candidates: Sequence[StoredScheme], per_unit: int) -> list[int]:
    """Which candidates to measure: one per bit-width, its middle group size; at most ``per_unit``, evenly chosen."""
    by_bits: dict[int, list[int]] = {}
    for index, scheme in enumerate(candidates):
        by_bits.setdefault(scheme.bits, []).append(index)
    wanted = [bits for bits in sorted(by_bits) if bits in MEASURED_BITS] or sorted(by_bits)
    chosen = [by_bits[bits][len(by_bits[bits]) // 2] for bits in wanted]
    if len(chosen) > per_unit:
        chosen = [chosen[round(i * (len(chosen) - 1) / max(1, per_unit - 1))] for i in range(max(1, per_unit))]
    return sorted(set(chosen))


def _nearest(index: int, measured: Sequence[int], candidates: Sequence[StoredScheme]) -> int:
    return min(measured, key=lambda m: (abs(candidates[m].bits - candidates[index].bits), abs(m - index)))


@torch.no_grad()
def measure_units(
    checkpoint: Checkpoint,
    units: Sequence[Unit],
    candidates: Sequence[StoredScheme],
    recipe: Recipe,
    tokens: list[list[int]],
    progress: Progress,
    branch_bytes: int = BRANCH_BYTES,
) -> list[list[float]]:
    """Mean KL(original | one unit quantized) in nats per token, per unit and candidate.

    Args:
        tokens: windows of equal length.

    Raises:
        BackendError: the architecture does not fit the layer-by-layer engine.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = LayeredModel(checkpoint, device)
    batches, kwargs = model.embed(tokens)
    size = sum(hidden.numel() * 4 for hidden in batches)
    measured = measured_candidates(candidates, max(1, branch_bytes // (size * len(units))))
    branches = _Branches()
    ratios = [[1.0] * len(candidates) for _ in units]
    for index in range(model.layers):
        prefix = model.layer_prefix(index)
        own = [i for i, unit in enumerate(units) if unit.modules[0].name.startswith(f"{prefix}.")]
        older = list(branches.hidden)
        with model.layer(index) as layer:
            local = {m.name.removeprefix(f"{prefix}.") for i in own for m in units[i].modules}
            groups = find_groups(layer, local, batches[0], kwargs[index])
            moments = collect_moments(layer, groups, batches, kwargs[index])
            by_name = {n: found for group, found in zip(groups, moments, strict=True) for n in group.names}
            branches.advance(layer, kwargs[index], older)
            for place, i in enumerate(own):
                progress("sensitivity", index + (1 + place) / (2 + len(own)), model.layers)
                names = [n for m in units[i].modules if (n := m.name.removeprefix(f"{prefix}.")) in by_name]
                if not names:
                    raise BackendError(
                        f"{units[i].name}: transformers has no linear module of this name",
                        "give the bits with --recipe",
                    )
                ratios[i] = _error_ratios(layer, names, candidates, measured, by_name)
                for c in measured:
                    branches.hidden[i, c] = _with_rounded(
                        layer, names, candidates[c], recipe, by_name, batches, kwargs[index]
                    )
            batches = [run_layer(layer, hidden, kwargs[index]) for hidden in batches]
        progress("sensitivity", index + 1, model.layers)
    direct = _divergences(model, batches, branches, tokens)
    return [
        [direct[i, _nearest(c, measured, candidates)] * ratios[i][c] for c in range(len(candidates))]
        for i in range(len(units))
    ]


def _with_rounded(
    layer: nn.Module, names: Sequence[str], scheme: StoredScheme, recipe: Recipe, moments: Mapping[str, Moments],
    batches: Batches, kwargs: Mapping[str, Any],
) -> Batches:  # fmt: skip
    """The layer's output with the named modules rounded; the layer is left as it was."""
    before = {name: weight_of(layer, name).clone() for name in names}
    for name in names:
        weight_of(layer, name).copy_(recipe.algorithm.solve_module(before[name], scheme, recipe.options, moments[name]))
    found = [run_layer(layer, hidden, kwargs) for hidden in batches]
    for name, weight in before.items():
        weight_of(layer, name).copy_(weight)
    return found


def _error_ratios(
    layer: nn.Module, names: Sequence[str], candidates: Sequence[StoredScheme], measured: Sequence[int],
    moments: Mapping[str, Moments],
) -> list[float]:  # fmt: skip
    """Output error of each candidate over that of the measured one that stands for it, by round-to-nearest."""
    errors = []
    for scheme in candidates:
        total = 0.0
        for name in names:
            weight = weight_of(layer, name)
            total += relative_error(weight, quantize_weight(weight, scheme).dequantize(), moments[name].hessian)
        errors.append(total)
    found = []
    for c in range(len(candidates)):
        base = errors[_nearest(c, measured, candidates)]
        found.append(errors[c] / base if base > 0 else 1.0)
    return found


def _divergences(
    model: LayeredModel, batches: Batches, branches: _Branches, tokens: list[list[int]]
) -> dict[tuple[int, int], float]:
    """Mean KL per token of every branch."""
    totals = dict.fromkeys(branches.hidden, 0.0)
    start, count = 0, 0
    for b, hidden in enumerate(batches):
        windows = tokens[start : start + hidden.shape[0]]
        start += hidden.shape[0]
        original = model.logits(hidden, windows).log_softmax(-1)
        probabilities = original.exp()
        count += original.shape[0] * original.shape[1]
        for key, states in branches.hidden.items():
            other = model.logits(states[b], windows).log_softmax(-1)
            totals[key] += float((probabilities * (original - other)).sum(dtype=torch.float64))
    return {key: max(0.0, total / count) for key, total in totals.items()}
