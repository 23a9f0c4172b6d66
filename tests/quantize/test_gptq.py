"""GPTQModel's solver behind our second moments."""

from __future__ import annotations

import pytest
import torch

from vllm_quant_plugin.formats import get_format
from vllm_quant_plugin.quantize import gptq
from vllm_quant_plugin.quantize.options import make_recipe
from vllm_quant_plugin.quantize.statistics import relative_error
from vllm_quant_plugin.rtn import quantize_int


def _problem(n: int = 32, k: int = 64):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(n, k, generator=generator)
    mix = torch.randn(k, k, generator=generator)
    x = torch.randn(600, k, generator=generator) @ mix
    return weight, x.T @ x, 600


@pytest.mark.parametrize("level", ["4bit-32g", "3bit-32g", "2bit-32g", "8bit-32g", "4bit-32g-asym", "4bit-channel"])
@pytest.mark.parametrize("act_order", [True, False])
def test_beats_round_to_nearest_and_survives_the_format(level: str, act_order: bool) -> None:
    scheme = make_recipe("gptq", level=level, act_order=act_order).scheme
    original, hessian, tokens = _problem()
    before = original.clone()
    weight = gptq.solve(original, hessian, tokens, scheme, damp=0.05, mse=2.4, static_groups=False).validate()
    assert torch.equal(original, before)
    plain = quantize_int(before, scheme.bits, scheme.group_size, symmetric=scheme.symmetric)
    ours = relative_error(before, weight.dequantize(), hessian)
    # Inputs are strongly correlated, which is what GPTQ makes use of and rounding does not.
    assert ours < 0.7 * relative_error(before, plain.dequantize(), hessian)
    layout = get_format(scheme)
    again = layout.unpack(layout.pack(weight, scheme), scheme, *before.shape)
    assert torch.equal(again.dequantize(), weight.dequantize())
    assert (weight.g_idx is not None) == act_order


def test_same_input_same_result() -> None:
    scheme = make_recipe("gptq", level="3bit-32g").scheme
    results = [gptq.solve(*_problem(), scheme, damp=0.05, mse=2.4, static_groups=False) for _ in range(2)]
    assert torch.equal(results[0].codes, results[1].codes)
    assert torch.equal(results[0].scales, results[1].scales)
