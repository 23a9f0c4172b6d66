"""What integer weights compute through vLLM's kernels, against float64: every way to adapt one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.kernels.weights import random_weight
from tests.support.fake_cuda import exact_kernels, fake_cuda
from vllm_quant_kernels.canonical import CanonicalWeight
from vllm_quant_kernels.kernel import Device
from vllm_quant_kernels.registry import choose
from vllm_quant_kernels.scheme import PER_CHANNEL, Int, WeightScheme
from vllm_quant_plugin.adapter.integers import convert, layouts
from vllm_quant_plugin.adapter.linear import VllmLinear, build_integers
from vllm_quant_plugin.adapter.linear import choose as choose_form

BF16, HALF_STEP = torch.bfloat16, 2.0**-9


def bound(weight: CanonicalWeight, x: torch.Tensor) -> torch.Tensor:
    """What rounding can add to each output in bfloat16: scales, offsets, sums of activations, two results.

    Each of them is off by half a step of what it is, so the magnitudes of all products, those of the zero points
    included, times so many half steps bound the sum.
    """
    index = weight.group_index()
    scales = weight.scales.double()[:, index].abs()
    zeros = torch.full_like(scales, 1 << (weight.bits - 1)) if weight.zeros is None else weight.zeros.double()[:, index]
    middle = float(1 << (weight.bits - 1))
    size = (weight.codes.double() - zeros).abs() + 2 * (zeros - middle).abs()
    return 4 * HALF_STEP * (x.double().abs() @ (size * scales).T)


def check(weight: CanonicalWeight, bits: int | None = None, rows: int = 3) -> VllmLinear:
    """The module computes ``weight``'s products; ``bits`` are those of the codes that the kernel got."""
    module = build_integers(weight, BF16)
    x = torch.randn(2, rows, weight.in_features, dtype=BF16, generator=torch.Generator().manual_seed(1))
    found = module(x)
    exact = x.double() @ weight.dequantize(torch.float64).T
    assert found.shape == exact.shape
    assert found.dtype == BF16
    assert ((found.double() - exact).abs() <= bound(weight, x) + 1e-30).all()
    if bits is not None:
        assert module.kernel.config.weight_type.size_bits == bits
    return module


@pytest.fixture(params=[True, False], ids=["humming", "no humming"])
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    fake_cuda(monkeypatch, (8, 0), with_humming=request.param)
    exact_kernels(monkeypatch)
    return bool(request.param)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("zeros", ["none", "integer", "wide", "floating"])
def test_every_width_and_zero_point(bits: int, zeros: str, gpu: bool) -> None:
    weight = random_weight(40, 192, bits, 64, zeros)
    native = bits in (4, 8) or (gpu and zeros != "wide")
    check(weight, bits if native else 4 if bits < 4 else 8)


@pytest.mark.parametrize(("k", "group", "size"), [
    (256, 128, 128), (512, 256, 128), (192, 96, 32), (256, 32, 32), (200, 64, 64), (100, None, PER_CHANNEL),
    (320, 320, PER_CHANNEL), (288, 192, 64),
])  # fmt: skip
@pytest.mark.parametrize("zeros", ["none", "integer", "floating"])
def test_every_group(k: int, group: int | None, size: int, zeros: str, gpu: bool) -> None:
    module = check(random_weight(24, k, 4, group, zeros))
    assert module.kernel.config.group_size == size


def test_groups_of_16_need_humming(gpu: bool) -> None:
    weight = random_weight(24, 128, 4, 16, "integer")
    if gpu:
        assert check(weight).kernel.config.group_size == 16
    else:
        assert choose_form(weight, BF16) is None
    assert choose_form(random_weight(24, 96, 4, 24), BF16) is None


@pytest.mark.parametrize("order", ["shuffled", "shard"])
@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("zeros", ["none", "integer", "floating"])
def test_act_order(order: str, bits: int, zeros: str, gpu: bool) -> None:
    module = check(random_weight(24, 512, bits, 128, zeros, order=order))
    assert module.source is not None
    real = module.source[module.source < module.k]
    assert sorted(real.tolist()) == list(range(module.k))


def test_act_order_of_one_group_gathers_nothing(gpu: bool) -> None:
    assert check(random_weight(24, 128, 4, None, order="shuffled")).source is None


@pytest.mark.parametrize("order", ["none", "shuffled"])
@pytest.mark.parametrize("zeros", ["none", "integer", "floating"])
def test_shards_sum_to_the_whole(order: str, zeros: str, gpu: bool) -> None:
    """Each rank gathers within its own columns; with act-order it keeps every group's scale."""
    whole = random_weight(32, 512, 4, 128, zeros, order=order)
    x = torch.randn(4, 512, dtype=BF16)
    total = torch.zeros(4, 32, dtype=torch.float64)
    for start in (0, 256):
        part, columns = whole.columns(start, start + 256), x[:, start : start + 256]
        total += build_integers(part, BF16)(columns).double()
    exact = x.double() @ whole.dequantize(torch.float64).T
    assert ((total - exact).abs() <= bound(whole, x)).all()


def test_runs_that_padding_would_double_stay_packed(gpu: bool) -> None:
    """A shard of many small groups: 8 columns of each, which no kernel reads without 24 of padding."""
    weight = random_weight(16, 1024, 4, 32, order="shuffled").columns(0, 256)
    assert layouts(weight) == []


@pytest.mark.parametrize("zeros", ["integer", "wide", "floating"])
def test_conversion_is_exact_in_float32(zeros: str, gpu: bool) -> None:
    """Codes, zero points and offsets together are the weight itself, before any scale is rounded."""
    weight = random_weight(24, 256, 4 if zeros != "wide" else 3, 64, zeros)
    chosen = choose_form(weight, torch.float16)
    assert chosen is not None
    _, _, layout, form = chosen
    made = convert(weight, layout, form, torch.float64)
    zero = float(1 << (form.bits - 1)) if made.zeros is None else made.zeros.double().repeat_interleave(layout.group, 1)
    value = (made.codes.double() - zero) * made.scales.repeat_interleave(layout.group, 1)
    if made.offsets is not None:
        value += made.offsets.repeat_interleave(layout.group, 1)
    assert torch.allclose(value[:, :256], weight.dequantize(torch.float64), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("capability", [(8, 0), (9, 0), (10, 0)])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("change", [{}, {"group_size": 96}, {"act_order": True}, {"symmetric": False}])
def test_the_registry_names_the_kernel_that_packs(
    capability: tuple[int, int], bits: int, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_cuda(monkeypatch, capability)
    exact_kernels(monkeypatch)
    scheme = WeightScheme(Int(bits), **{"group_size": 128, **change})
    order = "shuffled" if scheme.act_order else "none"
    weight = random_weight(256, 768, bits, scheme.group_size, "none" if scheme.symmetric else "integer", order=order)
    device = Device("cuda", capability)
    kernel = choose(scheme, 256, 768, device, weight=weight).kernel
    assert kernel.name == "vllm-weight-only"
    packed = kernel.pack(weight, scheme)
    named = kernel.label_on(scheme, 256, 768, device).removeprefix("vLLM ")
    assert packed.args == f"{named}LinearKernel"
    # What the kernel reads, before its own layout: never more than the checkpoint's codes, scales and indices.
    assert packed.nbytes <= 256 * 768 * bits // 8 + 256 * -(-768 // 32) * 3 + 4 * 768
    bias = torch.randn(256, dtype=BF16)
    x = torch.randn(5, 768, dtype=BF16)
    assert torch.equal(kernel.apply(packed, packed.tensors, x, bias), kernel.apply(packed, {}, x, None) + bias)
    assert torch.allclose(kernel.dequantize(packed, {}).double(), weight.dequantize(torch.float64), rtol=2.0**-7)
