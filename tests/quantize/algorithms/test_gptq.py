"""GPTQ on second moments against rounding to nearest, and bit for bit against GPTQModel's solver."""

from __future__ import annotations

import pytest
import torch

from vllm_quant_kernels.canonical import CanonicalWeight
from vllm_quant_plugin.formats import get_format
from vllm_quant_plugin.quantize.algorithms import gptq
from vllm_quant_plugin.quantize.engine.statistics import relative_error
from vllm_quant_plugin.quantize.recipe import make_recipe
from vllm_quant_plugin.rtn import quantize_int

OPTIONS = gptq.GptqOptions()


def assert_equal(one: CanonicalWeight, other: CanonicalWeight) -> None:
    for field in ("codes", "scales", "zeros", "g_idx"):
        first, second = getattr(one, field), getattr(other, field)
        assert (first is None) == (second is None)
        assert first is None or torch.equal(first, second)


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
    weight = gptq.solve(original, hessian, tokens, scheme, OPTIONS).validate()
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
    results = [gptq.solve(*_problem(), scheme, OPTIONS) for _ in range(2)]
    assert_equal(*results)


@pytest.mark.parametrize(
    ("level", "act_order", "static_groups"),
    [
        ("4bit-32g", True, False),
        ("4bit-32g", False, False),
        ("4bit-32g", True, True),
        ("2bit-32g-asym", True, False),
        ("4bit-channel", True, False),
        ("4bit-channel-asym", False, True),
        ("3bit-64g-asym", False, True),
        ("8bit-32g", True, False),
    ],
)
def test_the_solver_gives_what_the_library_gives(level: str, act_order: bool, static_groups: bool) -> None:
    weight, hessian, tokens = _problem(32, 320)
    # An input that is always zero.
    hessian[:, 7] = hessian[7, :] = 0
    scheme = make_recipe("gptq", level=level, act_order=act_order).scheme

    options = gptq.GptqOptions(static_groups=static_groups)
    found, lent = gptq.solve(weight, hessian, tokens, scheme, options), hessian.clone()
    assert_equal(found, gptq.solve(weight, lent, tokens, scheme, options, restore=lambda: lent.copy_(hessian)))
    assert torch.equal(lent, hessian)
    library = gptq.solve_with_library(weight, hessian, tokens, scheme, options)
    assert_equal(found, gptq.to_canonical(library, scheme))


def test_more_damping_where_the_matrix_is_not_positive_definite() -> None:
    weight, hessian, tokens = _problem()
    before = hessian.clone()
    # The smallest eigenvalue lies two hundredths of the mean diagonal below zero: a hundredth more is not enough.
    shift = 0.02 * hessian.diagonal().mean() + torch.linalg.eigvalsh(hessian)[0]
    hessian.diagonal().sub_(shift)
    scheme = make_recipe("gptq", level="4bit-32g").scheme
    options = gptq.GptqOptions(damp=0.01)
    made = gptq.solve(weight, hessian, tokens, scheme, options).validate()
    lent = hessian.clone()
    assert_equal(made, gptq.solve(weight, lent, tokens, scheme, options, restore=lambda: lent.copy_(hessian)))
    plain = quantize_int(weight, 4, 32)
    assert relative_error(weight, made.dequantize(), before) < relative_error(weight, plain.dequantize(), before)
