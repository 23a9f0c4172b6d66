"""AutoAWQ's search of a scale leaves the weights as they were, on a CPU too."""

from __future__ import annotations

import torch
from awq.quantize.quantizer import AwqQuantizer
from torch import nn

from vllm_quant_plugin.backends.library_worker import _keep_weights_between_scales


def _searched(quantizer_class: type[AwqQuantizer]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(weight before, weight after, scale found) of one search on a module with two outlier channels."""
    torch.manual_seed(0)
    module = nn.Linear(64, 32, bias=False)
    x = torch.randn(128, 64)
    x[:, :2] *= 30
    before = module.weight.detach().clone()
    quantizer = quantizer_class.__new__(quantizer_class)
    quantizer.duo_scaling, quantizer.zero_point, quantizer.w_bit, quantizer.group_size = True, True, 3, 32
    quantizer.max_chunk_memory, quantizer.n_parallel_calib_samples = 1 << 30, None
    grouped = before.abs().view(-1, 32)
    magnitude = (grouped / grouped.amax(1, keepdim=True)).view(32, 64).mean(0)
    with torch.no_grad():
        scale = quantizer._compute_best_scale(x, magnitude, x.abs().mean(0), module, [module], module(x), {})
    return before, module.weight.detach(), scale


def test_weights_are_as_before_the_search() -> None:
    # The class itself multiplies them; that is what the wrapper is for.
    before, after, _ = _searched(type("Upstream", (AwqQuantizer,), {}))
    assert not torch.equal(before, after)

    fixed = type("Fixed", (AwqQuantizer,), {})
    _keep_weights_between_scales(fixed)
    before, after, scale = _searched(fixed)
    assert torch.equal(before, after)
    # Loud channels are scaled up.
    assert float(scale[:2].min()) > float(scale[2:].mean())
