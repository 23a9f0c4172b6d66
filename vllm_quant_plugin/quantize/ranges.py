"""What 8-bit activations need to know of a layer's inputs: their largest magnitude per channel, and some of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from vllm_quant_plugin.quantize.layered_model import run_layer
from vllm_quant_plugin.quantize.statistics import Group, weight_of

SAMPLE_TOKENS = 256


@dataclass
class InputRange:
    """The input of a group of linear modules.

    Attributes:
        peak: float32 (K,), largest magnitude of each channel over all tokens.
        sample: float32 (T, K), evenly spaced tokens of every batch, about ``SAMPLE_TOKENS``.
        tokens: number of tokens seen.
    """

    peak: torch.Tensor
    sample: torch.Tensor
    tokens: int = 0

    def divide(self, scale: torch.Tensor) -> None:
        """Follow a fold: the input is divided by ``scale`` (K,)."""
        self.peak /= scale
        self.sample /= scale


def spaced_rows(x: torch.Tensor, count: int) -> torch.Tensor:
    """``count`` rows of (T, K) at equal distances, all of them when there are no more; a copy."""
    if x.shape[0] <= count:
        return x.clone()
    return x[torch.arange(count, device=x.device) * x.shape[0] // count]


@torch.no_grad()
def collect_ranges(
    layer: nn.Module, groups: Sequence[Group], batches: Sequence[torch.Tensor], kwargs: Mapping[str, Any]
) -> list[InputRange]:
    """Ranges of the groups' inputs over all batches."""
    found, handles = [], []
    per_batch = -(-SAMPLE_TOKENS // len(batches))
    for group in groups:
        weight = weight_of(layer, group.names[0])
        k = weight.shape[1]
        seen = InputRange(torch.zeros(k, device=weight.device), torch.zeros(0, k, device=weight.device))
        found.append(seen)

        def hook(_module: nn.Module, args: tuple[Any, ...], *, seen: InputRange = seen) -> None:
            x = args[0].reshape(-1, args[0].shape[-1])
            if not x.shape[0]:
                return
            seen.peak = torch.maximum(seen.peak, x.abs().amax(0))
            seen.sample = torch.cat([seen.sample, spaced_rows(x, per_batch)])
            seen.tokens += x.shape[0]

        handles.append(layer.get_submodule(group.names[0]).register_forward_pre_hook(hook))
    try:
        for hidden in batches:
            run_layer(layer, hidden, kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return found


class AttentionRanges(TorchFunctionMode):
    """While active, keeps the largest magnitude of the keys (after rotation) and values that attention reads.

    Attributes:
        key, value: largest magnitudes so far, 0 when attention has not run.
    """

    def __init__(self) -> None:
        super().__init__()
        self.key = self.value = 0.0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention:
            named = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
            self.key = max(self.key, float(named["key"].abs().max()))
            self.value = max(self.value, float(named["value"].abs().max()))
        return func(*args, **kwargs)
