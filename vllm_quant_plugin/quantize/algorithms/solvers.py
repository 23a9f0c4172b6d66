"""How one decoder layer is quantized, by method. The weights of the layer are float32 and may be changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from vllm_quant_plugin.quantize.algorithms import awq, gptq
from vllm_quant_plugin.quantize.algorithms.datafree import stored_scale_dtype
from vllm_quant_plugin.quantize.algorithms.eightbit import solve_rounding
from vllm_quant_plugin.quantize.algorithms.task import SolvedLayer, Task
from vllm_quant_plugin.quantize.engine.fold import find_fold, try_fold
from vllm_quant_plugin.quantize.engine.in_place import spilled
from vllm_quant_plugin.quantize.engine.statistics import (
    Group,
    Moments,
    collect_moments,
    find_groups,
    relative_error,
    split_passes,
    weight_of,
)

# AutoAWQ leaves these unclipped: their product, not their output, enters the softmax.
_UNCLIPPED = ("q_proj", "k_proj")


def _fold_scales(
    task: Task, grids: Mapping[str, awq.Grid], groups: Sequence[Group], moments: Sequence[Moments]
) -> None:
    """Search and fold a scale for each group; moments follow. Undone where the layer's function changes."""
    for group, found in zip(groups, moments, strict=True):
        fold = find_fold(task.layer, group, task.head_dim)
        if fold is None:
            continue
        weights = [weight_of(task.layer, n) for n in group.names]
        scale = awq.search_scale(
            weights, found.hessian, grids[group.names[0]], shared_heads=fold.shared_heads, head_dim=fold.head_dim
        )  # fmt: skip
        applied = try_fold(task.layer, fold, scale, task.dtype, task.sample_output)
        if applied is not None:
            found.hessian.div_(applied[:, None]).div_(applied[None, :])


def _solve_awq(task: Task) -> SolvedLayer:
    grids = {
        name: awq.Grid(s.bits, s.group_size, s.symmetric, stored_scale_dtype(s, task.dtype))
        for name, s in task.schemes.items()
    }
    groups = find_groups(task.layer, task.schemes, task.batches[0], task.kwargs)
    moments = collect_moments(task.layer, groups, task.batches, task.kwargs)
    _fold_scales(task, grids, groups, moments)
    solved = SolvedLayer()
    for group, found in zip(groups, moments, strict=True):
        for name in group.names:
            weight = weight_of(task.layer, name)
            shrink: torch.Tensor | float = 1.0
            if not name.endswith(_UNCLIPPED):
                shrink = awq.search_clip(weight, found.hessian, grids[name])
            solved.weights[name] = awq.quantize(weight, grids[name], shrink)
            solved.errors[name] = relative_error(weight, solved.weights[name].dequantize(), found.hessian)
            solved.tokens[name] = found.signal
    return solved


def _solve_gptq(task: Task) -> SolvedLayer:
    """True sequential: each group sees inputs that the groups before it, already rounded, produce."""
    solved, recipe = SolvedLayer(), task.recipe
    groups = find_groups(task.layer, task.schemes, task.batches[0], task.kwargs)
    for together in split_passes(task.layer, groups):
        alone = len(together) == 1
        moments = collect_moments(task.layer, together, task.batches, task.kwargs, stop_early=alone)
        for group, found in zip(together, moments, strict=True):
            # Without a signal every column would count as dead and become zero: all count alike instead.
            hessian = found.hessian if found.signal else torch.eye(found.hessian.shape[0], device=found.hessian.device)
            with spilled(hessian, task.scratch) as restore:
                for name in group.names:
                    original = weight_of(task.layer, name)
                    weight = gptq.solve(
                        original, hessian, found.tokens, task.schemes[name],
                        damp=recipe.damp, mse=recipe.mse, static_groups=recipe.static_groups, restore=restore,
                    )  # fmt: skip
                    rounded = weight.dequantize()
                    solved.errors[name] = relative_error(original, rounded, found.hessian)
                    solved.tokens[name] = found.signal
                    original.copy_(rounded)
                    solved.weights[name] = weight
    return solved


SOLVERS: dict[str, Callable[[Task], SolvedLayer]] = {
    "awq": _solve_awq, "gptq": _solve_gptq, "int8": solve_rounding, "fp8": solve_rounding, "rtn": solve_rounding,
}  # fmt: skip
