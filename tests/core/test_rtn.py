"""Round to nearest: the error of each weight is at most half a step, and exact values survive."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_quant_plugin.rtn import quantize_fp8, quantize_int


@settings(max_examples=40, deadline=None)
@given(
    bits=st.integers(2, 8),
    group=st.sampled_from([-1, 0, 16, 32]),
    symmetric=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_int_error_is_at_most_half_a_step(bits: int, group: int, symmetric: bool, seed: int) -> None:
    """|w - q(w)| <= scale / 2, and one more half for the rounded zero point at the ends of the range."""
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(seed))
    found = quantize_int(weight, bits, group, symmetric=symmetric).validate()
    step = found.scales[:, found.group_index()]
    bound = step * (0.5 if symmetric else 1.0) + 1e-6
    assert ((found.dequantize() - weight).abs() <= bound).all()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_symmetric_grid_of_few_bits_uses_all_codes(bits: int) -> None:
    """It is the finer for it: its squared error lies below that of the grid that ends at the largest value."""
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(3))
    found = quantize_int(weight, bits, 32)
    assert (int(found.codes.min()), int(found.codes.max())) == (0, 2**bits - 1)
    top = 2 ** (bits - 1) - 1
    steps = (weight.reshape(64, 4, 32).abs().amax(-1, keepdim=True) / top).repeat_interleave(32, 2).reshape(64, 128)
    plain = (weight / steps).round().clamp(-top, top) * steps
    assert (found.dequantize() - weight).square().sum() < 0.97 * (plain - weight).square().sum()


def test_scale_dtype_is_used_for_the_codes() -> None:
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(1))
    found = quantize_int(weight, 8, scale_dtype=torch.bfloat16)
    assert found.scales.dtype == torch.bfloat16
    assert ((found.dequantize() - weight).abs() <= found.scales.float() * 0.75).all()


@pytest.mark.parametrize("block_n", [1, 8])
@pytest.mark.parametrize("kind", ["fp8_e4m3", "fp8_e5m2"])
@pytest.mark.parametrize("group", [-1, 0, 32, 48])
def test_fp8_relative_error(kind: str, group: int, block_n: int) -> None:
    """Half a unit in the last place: 2**-4 of the value for E4M3, 2**-3 for E5M2, or half the least subnormal."""
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(2))
    found = quantize_fp8(weight, group, block_n=block_n, kind=kind).validate()
    error = (found.dequantize() - weight).abs()
    relative, subnormal = {"fp8_e4m3": (2**-4, 2**-10), "fp8_e5m2": (2**-3, 2**-17)}[kind]
    bound = weight.abs() * relative + found.scales[:, found.group_index()] * subnormal
    assert (error <= bound * 1.0001).all()
    if block_n > 1:
        assert torch.equal(found.scales[0:8], found.scales[0:1].expand(8, -1))


def test_zero_weights_stay_zero() -> None:
    zero = torch.zeros(4, 32)
    assert quantize_int(zero, 4, 16).dequantize().abs().max() == 0
    assert quantize_int(zero, 4, 16, symmetric=False).dequantize().abs().max() == 0
    assert quantize_fp8(zero).dequantize().abs().max() == 0


def test_group_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="group_size 48 does not divide"):
        quantize_int(torch.zeros(4, 64), 4, 48)
