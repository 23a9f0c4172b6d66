"""The range of a layer's static activations."""

from __future__ import annotations

from collections.abc import Iterable

import torch

# ``low``, ``high`` and ``scale``, scalars; empty where activations are not static.
StaticRange = dict[str, torch.Tensor]


def static_range(parts: Iterable[tuple[torch.Tensor, torch.Tensor | None] | None]) -> StaticRange:
    """One range that covers the ranges of all fused parts: they share one input.

    A symmetric scale is the largest; with zero points the ranges are joined, as in vLLM's CPU kernel
    (kernels/linear/scaled_mm/cpu.py).

    Args:
        parts: of each part, its scale and its zero point, or None where it has no static activations.
    """
    found: StaticRange = {}
    for part in parts:
        if part is None:
            continue
        scale = part[0].float().reshape(())
        zero = torch.zeros_like(scale) if part[1] is None else part[1].float().reshape(())
        low, high = scale * (-128 - zero), scale * (127 - zero)
        if found:
            low, high = torch.minimum(found["low"], low), torch.maximum(found["high"], high)
            scale = torch.maximum(found["scale"], scale)
        found = {"low": low, "high": high, "scale": scale}
    return found
