"""The weight that a kernel of vLLM computes with, read off its products: its packed form is the kernel's own."""

from __future__ import annotations

import torch

from vllm_quant_plugin.adapter.linear import VllmLinear

STEP = 512
# Exact in FP8 E4M3 and INT8, and inside any static range that such a multiple of its scale defines.
STEADY = 64.0


def weight_of(module: VllmLinear) -> torch.Tensor:
    """float32 (N, K), rounded to the dtype of the activations.

    One activation of a row is ``peak`` and all others are zero, so that quantization of activations is exact: 64 times
    the scale of a static range, or 1.
    """
    device = next(module.parameters()).device
    scale = getattr(module, "input_scale", None)
    zero = getattr(module, "input_zero_point", None)
    peak = 1.0 if scale is None or zero is not None else STEADY * float(scale)
    columns = []
    for start in range(0, module.k, STEP):
        stop = min(start + STEP, module.k)
        x = torch.zeros(stop - start, module.k, dtype=module.params_dtype, device=device)
        x[torch.arange(stop - start), torch.arange(start, stop)] = peak
        columns.append((module(x).float() / peak).t())
    return torch.cat(columns, dim=1)
