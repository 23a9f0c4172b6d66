"""Static activation ranges as the INT8 kernels take them."""

from __future__ import annotations

from collections.abc import Mapping

import torch


def static_int8(static: Mapping[str, torch.Tensor], symmetric: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Scale (1,) and, unless symmetric, INT8 zero point (1,) of a static activation range.

    Args:
        static: ``low``, ``high`` and ``scale`` of the range, float tensors of one element.
    """
    if symmetric:
        return static["scale"].float().reshape(1).clone(), None
    scale = ((static["high"] - static["low"]) / 255).reshape(1)
    return scale, (-128 - static["low"] / scale).round().to(torch.int32)
