"""AWQ and GPTQ one decoder layer at a time: load, measure, quantize, write, go on with its output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from vllm_quant_kernels.canonical import CanonicalWeight
from vllm_quant_plugin.checkpoint import Checkpoint
from vllm_quant_plugin.formats import get_format
from vllm_quant_plugin.quantize import awq, gptq
from vllm_quant_plugin.quantize.datafree import Progress, stored_scale_dtype
from vllm_quant_plugin.quantize.fold import apply_fold, find_fold
from vllm_quant_plugin.quantize.journal import Journal
from vllm_quant_plugin.quantize.layered_model import LayeredModel, run_layer
from vllm_quant_plugin.quantize.modules import Linear
from vllm_quant_plugin.quantize.recipe import Recipe
from vllm_quant_plugin.quantize.shards import ModelWriter, read_tensor
from vllm_quant_plugin.quantize.statistics import collect_moments, find_groups, relative_error, weight_of
from vllm_quant_plugin.scheme import Scheme

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
# A fold that changes a layer's output by more than this share is undone: the architecture is not what it seemed.
FOLD_TOLERANCE = 1e-3
# AutoAWQ leaves these unclipped: their product, not their output, enters the softmax.
_UNCLIPPED = ("q_proj", "k_proj")

Batches = list[torch.Tensor]
Solved = tuple[dict[str, CanonicalWeight], dict[str, float]]


def quantize_layerwise(
    checkpoint: Checkpoint,
    modules: list[Linear],
    recipe: Recipe,
    tokens: list[list[int]],
    writer: ModelWriter,
    journal: Journal,
    progress: Progress,
) -> dict[str, float]:
    """Write every tensor of the checkpoint, the given modules quantized with calibration windows ``tokens``.

    Args:
        journal: finished layers are kept here, and taken from here.

    Returns:
        Relative output error of each module on the calibration text.

    Raises:
        BackendError: the architecture does not fit this engine.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = LayeredModel(checkpoint, device)
    wanted = {m.name: scheme for m in modules if (scheme := recipe.scheme_for(m.name)) is not None}
    batches, kwargs = model.embed(tokens)
    if journal.layers:
        batches = [hidden.to(device) for hidden in journal.hidden()]
    in_layers = {name for index in range(model.layers) for name in model.layer_tensors(index)}
    for index in range(journal.layers, model.layers):
        prefix = model.layer_prefix(index)
        local = {n.removeprefix(f"{prefix}."): s for n, s in wanted.items() if n.startswith(f"{prefix}.")}
        with model.layer(index) as layer:
            solved, found = _SOLVERS[recipe.method](layer, local, batches, kwargs[index], recipe, checkpoint.config)
            for name, weight in solved.items():
                weight_of(layer, name).copy_(weight.dequantize())
            made = _layer_tensors(checkpoint, layer, prefix, model.layer_tensors(index), solved, local)
            for i, hidden in enumerate(batches):
                batches[i] = run_layer(layer, hidden, kwargs[index])
        journal.commit(index, made, {f"{prefix}.{name}": round(error, 8) for name, error in found.items()}, batches)
        progress(prefix, index + 1, model.layers)
    for name, tensor in journal.tensors():
        writer.add(name, tensor)
    for name in sorted(set(checkpoint.tensors) - in_layers):
        writer.add(name, read_tensor(checkpoint, name))
    return journal.errors


def _layer_tensors(
    checkpoint: Checkpoint,
    layer: nn.Module,
    prefix: str,
    names: list[str],
    solved: Mapping[str, CanonicalWeight],
    schemes: Mapping[str, Scheme],
) -> dict[str, torch.Tensor]:
    """A layer as it goes to disk: packed modules, and the rest as folding left it, in its stored dtype."""
    made = {
        f"{prefix}.{name}.{leaf}": tensor
        for name, weight in solved.items()
        for leaf, tensor in get_format(schemes[name]).pack(weight, schemes[name]).items()
    }
    parameters = dict(layer.named_parameters())
    for name in names:
        local = name.removeprefix(f"{prefix}.")
        owner, _, leaf = local.rpartition(".")
        if leaf == "weight" and owner in solved:
            continue
        if local in parameters:
            made[name] = parameters[local].detach().to(DTYPES[checkpoint.tensors[name].dtype])
        else:
            made[name] = read_tensor(checkpoint, name)
    return made


def _fold_scales(
    layer: nn.Module, grids: Mapping[str, awq.Grid], groups: list[Any], moments: list[Any], head_dim: int,
    dtype: torch.dtype, check: Callable[[], torch.Tensor],
) -> None:  # fmt: skip
    """Search and fold a scale for each group; moments follow. Undone where the layer's function changes."""
    for group, found in zip(groups, moments, strict=True):
        fold = find_fold(layer, group, head_dim)
        if fold is None:
            continue
        weights = [weight_of(layer, n) for n in group.names]
        scale = awq.search_scale(
            weights, found.hessian, grids[group.names[0]], shared_heads=fold.shared_heads, head_dim=fold.head_dim
        )  # fmt: skip
        touched = (fold.producer, *group.names)
        before = {n: p.data.clone() for n, p in layer.named_parameters() if n.rpartition(".")[0] in touched}
        expected = check()
        applied = apply_fold(layer, fold, scale, dtype)
        change = (check() - expected).norm() / expected.norm().clamp(min=1e-12)
        if float(change) > FOLD_TOLERANCE:
            for name, kept in before.items():
                layer.get_parameter(name).data.copy_(kept)
            continue
        found.hessian.div_(applied[:, None]).div_(applied[None, :])


def _awq_layer(
    layer: nn.Module, schemes: Mapping[str, Scheme], batches: Batches, kwargs: Mapping[str, Any], recipe: Recipe,
    config: Mapping[str, Any],
) -> Solved:  # fmt: skip
    dtype = DTYPES.get(_stored_dtype(config), torch.bfloat16)
    grids = {
        name: awq.Grid(s.bits, s.group_size, s.symmetric, stored_scale_dtype(s, dtype)) for name, s in schemes.items()
    }
    groups = find_groups(layer, schemes, batches[0], kwargs)
    moments = collect_moments(layer, groups, batches, kwargs)
    sample = batches[0][:1]
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    _fold_scales(layer, grids, groups, moments, head_dim, dtype, lambda: run_layer(layer, sample, kwargs))
    solved, errors = {}, {}
    for group, found in zip(groups, moments, strict=True):
        for name in group.names:
            weight = weight_of(layer, name)
            shrink: torch.Tensor | float = 1.0
            if not name.endswith(_UNCLIPPED):
                shrink = awq.search_clip(weight, found.hessian, grids[name])
            solved[name] = awq.quantize(weight, grids[name], shrink)
            errors[name] = relative_error(weight, solved[name].dequantize(), found.hessian)
    return solved, errors


def _gptq_layer(
    layer: nn.Module, schemes: Mapping[str, Scheme], batches: Batches, kwargs: Mapping[str, Any], recipe: Recipe,
    config: Mapping[str, Any],
) -> Solved:  # fmt: skip
    """True sequential: each group sees inputs that the groups before it, already rounded, produce."""
    solved: dict[str, CanonicalWeight] = {}
    errors: dict[str, float] = {}
    for group in find_groups(layer, schemes, batches[0], kwargs):
        (found,) = collect_moments(layer, [group], batches, kwargs, stop_early=True)
        for name in group.names:
            original = weight_of(layer, name)
            weight = gptq.solve(
                original, found.hessian, found.tokens, schemes[name],
                damp=recipe.damp, mse=recipe.mse, static_groups=recipe.static_groups,
            )  # fmt: skip
            rounded = weight.dequantize()
            errors[name] = relative_error(original, rounded, found.hessian)
            original.copy_(rounded)
            solved[name] = weight
    return solved, errors


def _stored_dtype(config: Mapping[str, Any]) -> str:
    name = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")
    return {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}.get(name, "BF16")


_SOLVERS: dict[str, Callable[..., Solved]] = {"awq": _awq_layer, "gptq": _gptq_layer}
