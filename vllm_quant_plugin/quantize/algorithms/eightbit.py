"""INT8, FP8 and round-to-nearest of one decoder layer, with what calibration data adds: SmoothQuant, static scales."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from vllm_quant_kernels.canonical import CanonicalWeight
from vllm_quant_plugin.quantize.algorithms.datafree import (
    E4M3_MAX,
    quantize_weight,
    quantize_with_scale,
    stored_scale_dtype,
)
from vllm_quant_plugin.quantize.algorithms.smoothquant import INT8_MAX, choose_scale, round_activations
from vllm_quant_plugin.quantize.algorithms.task import SolvedLayer, Task
from vllm_quant_plugin.quantize.engine.fold import find_fold, try_fold
from vllm_quant_plugin.quantize.engine.statistics import Group, InputRange, collect_ranges, find_groups, weight_of
from vllm_quant_plugin.quantize.modules import siblings
from vllm_quant_plugin.quantize.recipe import Smooth
from vllm_quant_plugin.scheme import PER_TENSOR, ActivationScheme, Scheme

# Where calibration data never reached a module (an expert nobody chose), its static scale is that of unit inputs.
UNSEEN_PEAK = 1.0


def rounding(scheme: Scheme, dtype: torch.dtype) -> Callable[[torch.Tensor], CanonicalWeight]:
    """The function that rounds a float32 (N, K) weight to ``scheme``, for a model stored in ``dtype``."""
    return lambda weight: quantize_weight(weight, scheme, stored_scale_dtype(scheme, dtype))


def _rounded(scheme: Scheme, dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    make = rounding(scheme, dtype)
    return lambda weight: make(weight).dequantize()


def smooth_layer(task: Task, groups: Sequence[Group], found: Sequence[InputRange], strength: Smooth) -> None:
    """Fold SmoothQuant's scales into the layer; the ranges follow."""
    for group, seen in zip(groups, found, strict=True):
        fold, scheme = find_fold(task.layer, group, task.head_dim), task.schemes[group.names[0]]
        if fold is None or scheme.activation is None:
            continue
        weights = [weight_of(task.layer, name) for name in group.names]
        scale = choose_scale(weights, seen, fold, strength, scheme.activation, _rounded(scheme, task.dtype))
        applied = None if scale is None else try_fold(task.layer, fold, scale, task.dtype, task.sample_output)
        if applied is not None:
            seen.divide(applied)


def input_scale(seen: InputRange, activation: ActivationScheme) -> torch.Tensor:
    """The static scale of an input, float32 (1,): its largest magnitude over the type's largest value."""
    peak = float(seen.peak.max()) or UNSEEN_PEAK
    return torch.tensor([peak / (INT8_MAX if activation.kind == "int" else E4M3_MAX)])


def _round(task: Task, name: str) -> CanonicalWeight:
    weight, scheme = weight_of(task.layer, name), task.schemes[name]
    if scheme.group_size == PER_TENSOR and scheme.kind != "int":
        # vLLM fuses these into one matrix with one scale.
        parts = [weight_of(task.layer, part) for part in siblings(name) if part in task.schemes]
        return quantize_with_scale(weight, max(float(p.abs().max()) for p in parts) / E4M3_MAX or 1.0)
    return rounding(scheme, task.dtype)(weight)


@torch.no_grad()
def solve_rounding(task: Task) -> SolvedLayer:
    """Round every module to nearest, after SmoothQuant where the recipe asks for it; static scales as ``input_scale``.

    Errors count the rounding of activations as well, on the sample that ``collect_ranges`` keeps.
    """
    groups = find_groups(task.layer, task.schemes, task.batches[0], task.kwargs)
    found = collect_ranges(task.layer, groups, task.batches, task.kwargs)
    if task.recipe.smooth is not None:
        smooth_layer(task, groups, found, task.recipe.smooth)
    solved = SolvedLayer({name: _round(task, name) for name in task.schemes})
    for group, seen in zip(groups, found, strict=True):
        for name in group.names:
            activation, original = task.schemes[name].activation, weight_of(task.layer, name)
            rounded = round_activations(seen.sample, activation, float(seen.peak.max()))
            expected = seen.sample @ original.T
            lost = (rounded @ solved.weights[name].dequantize().T - expected).square().sum()
            energy = float(expected.square().sum())
            solved.errors[name] = float(lost) / energy if energy > 0 else 0.0
            solved.tokens[name] = seen.tokens if bool(seen.peak.any()) else 0
            if activation is not None and not activation.dynamic:
                solved.more[f"{name}.input_scale"] = input_scale(seen, activation)
    return solved
