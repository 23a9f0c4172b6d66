"""Multiplying a layer's weights by per-channel scales and dividing what produces their input: the function stays.

norm -> q, k, v      norm -> gate, up      v -> o (through attention)      up -> down (elementwise)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from vllm_quant_plugin.quantize.engine.statistics import Group, weight_of

# A fold that changes a layer's output by more than this share is undone: the architecture is not what it seemed.
FOLD_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Fold:
    """A place where a scale can go.

    Attributes:
        group: the modules that are multiplied.
        producer: the module that is divided, by name within the layer.
        is_norm: the producer is a norm (its weight is divided), else a linear module (its rows are).
        shared_heads: for v -> o: query heads per KV head.
        head_dim: for v -> o.
    """

    group: Group
    producer: str
    is_norm: bool
    shared_heads: int = 1
    head_dim: int = 0


_LINEAR_PRODUCERS = {"o_proj": "v_proj", "down_proj": "up_proj", "w2": "w3"}


def find_fold(layer: nn.Module, group: Group, head_dim: int) -> Fold | None:
    """Where a scale of ``group``'s input can go, None when nowhere."""
    modules = dict(layer.named_modules())
    if group.producer is not None:
        weight = getattr(modules[group.producer], "weight", None)
        # A norm has one weight per channel; anything else cannot take the scale.
        return Fold(group, group.producer, True) if weight is not None and weight.ndim == 1 else None
    if len(group.names) != 1:
        return None
    stem, _, leaf = group.names[0].rpartition(".")
    producer = f"{stem}.{_LINEAR_PRODUCERS.get(leaf, '')}"
    made = modules.get(producer)
    if not isinstance(made, nn.Linear):
        return None
    k, rows = weight_of(layer, group.names[0]).shape[1], made.weight.shape[0]
    if k == rows:
        return Fold(group, producer, False)
    if leaf == "o_proj" and head_dim and k % rows == 0 and rows % head_dim == 0:
        return Fold(group, producer, False, k // rows, head_dim)
    return None


def tie_heads(scale: torch.Tensor, shared: int, head_dim: int) -> torch.Tensor:
    """Make scales (K,) equal over the ``shared`` query heads that read one KV head (geometric mean)."""
    heads = scale.log().reshape(-1, shared, head_dim)
    return heads.mean(1, keepdim=True).expand_as(heads).reshape(-1).exp()


def _offset(norm: nn.Module) -> float:
    """Gemma-like norms multiply by 1 + weight."""
    return 1.0 if "Gemma" in type(norm).__name__ or "ZeroCentered" in type(norm).__name__ else 0.0


def apply_fold(layer: nn.Module, fold: Fold, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Divide the producer by ``scale`` (K,) and multiply the group's weights.

    A norm's weight is stored in ``dtype``, so it is rounded to that first and the weights get the
    scale that it really was divided by.

    Returns:
        The scale that was applied, (K,).
    """
    producer = layer.get_submodule(fold.producer)
    weight, bias = weight_of(layer, fold.producer), getattr(producer, "bias", None)
    if fold.is_norm:
        offset = _offset(producer)
        old = weight + offset
        rounded = (old / scale - offset).to(dtype).float()
        new = rounded + offset
        safe = (new != 0) & (old != 0)
        applied = torch.where(safe, old / torch.where(safe, new, torch.ones_like(new)), torch.ones_like(scale))
        weight.copy_(torch.where(safe, rounded, weight))
        rows = applied
    else:
        applied = rows = scale
        if fold.shared_heads > 1:
            rows = scale.reshape(-1, fold.shared_heads, fold.head_dim)[:, 0].reshape(-1)
        weight.div_(rows[:, None])
    if isinstance(bias, torch.Tensor):
        bias.data.div_(rows)
    for name in fold.group.names:
        weight_of(layer, name).mul_(applied)
    return applied


def try_fold(
    layer: nn.Module, fold: Fold, scale: torch.Tensor, dtype: torch.dtype, check: Callable[[], torch.Tensor]
) -> torch.Tensor | None:
    """``apply_fold``, undone where the layer's function changes.

    Args:
        check: gives the layer's output on a sample.

    Returns:
        The scale that was applied, (K,), or None.
    """
    touched = (fold.producer, *fold.group.names)
    before = {n: p.data.clone() for n, p in layer.named_parameters() if n.rpartition(".")[0] in touched}
    expected = check()
    applied = apply_fold(layer, fold, scale, dtype)
    change = (check() - expected).norm() / expected.norm().clamp(min=1e-12)
    if float(change) <= FOLD_TOLERANCE:
        return applied
    for name, kept in before.items():
        layer.get_parameter(name).data.copy_(kept)
    return None
