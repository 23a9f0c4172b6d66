"""One decoder layer to quantize, and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vllm_quant_kernels.canonical import CanonicalWeight
from vllm_quant_plugin.quantize.engine.layered_model import run_layer
from vllm_quant_plugin.quantize.recipe import Recipe
from vllm_quant_plugin.scheme import Scheme


@dataclass(frozen=True)
class Task:
    """A layer to quantize.

    Attributes:
        layer: with its weights in float32.
        schemes: local module name -> what it becomes.
        batches: what enters the layer, (B, L, hidden) each.
        kwargs: the layer's keyword arguments.
        recipe: the method's options.
        head_dim: of an attention head.
        dtype: of the model on disk.
        scratch: a folder on the output's disk.
    """

    layer: nn.Module
    schemes: Mapping[str, Scheme]
    batches: list[torch.Tensor]
    kwargs: Mapping[str, Any]
    recipe: Recipe
    head_dim: int
    dtype: torch.dtype
    scratch: Path

    def sample_output(self) -> torch.Tensor:
        """The layer's output on the first window."""
        return run_layer(self.layer, self.batches[0][:1], self.kwargs)


@dataclass
class SolvedLayer:
    """The result, by local module name.

    Attributes:
        weights: quantized weights.
        errors: share of the module's output energy that is lost on the calibration text.
        tokens: calibration tokens that reached the module.
        more: further tensors to store, by local tensor name.
    """

    weights: dict[str, CanonicalWeight] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    more: dict[str, torch.Tensor] = field(default_factory=dict)
