"""The operators against an fp64 oracle on the dequantized weight.

The bound asserted on every element of the output is

    |y - y64| <= c * eps32 * ||x||_2 * ||a||_2 + eps_out * |y64| + tiny_out

with a[k] = (|value| + |zero|) * |scale|, the largest terms that the kernel sums, c = 4, eps_out the
rounding to the output dtype and tiny_out half its smallest subnormal. For terms of like size
||x||_2 * ||a||_2 is sqrt(K) * rms(x) * rms(a) * sqrt(K): the rounding errors of a sum of K products
grow like sqrt(K) relative to the typical partial sum, so this is c * eps * sqrt(K) times that sum.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.weights import random_weight, weights
from vllm_quant_kernels import reference
from vllm_quant_kernels.canonical import FP8_DTYPES, CanonicalWeight
from vllm_quant_kernels.cpu import library
from vllm_quant_kernels.cpu.ops import linear, linear_a8, linear_int8
from vllm_quant_kernels.cpu.pack import pack, pack_int8
from vllm_quant_kernels.env import SettingError

EPS32 = 2.0**-24
EPS_OUT = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
TINY = {torch.float32: 2.0**-149, torch.float16: 2.0**-25, torch.bfloat16: 2.0**-134}
C = 4
ACTIVATIONS = [torch.bfloat16, torch.float16, torch.float32]


def magnitudes(w: CanonicalWeight) -> torch.Tensor:
    """(N, K) float64: the largest terms the kernel sums for each weight."""
    index = w.group_index()
    if w.kind == "int":
        zero = torch.full_like(w.scales, 1 << (w.bits - 1)) if w.zeros is None else w.zeros
        value = w.codes.double() + zero.double().abs()[:, index]
    else:
        value = w.codes.view(FP8_DTYPES[w.kind]).double().abs()
    return value * w.scales.double().abs()[:, index]


def assert_close(y: torch.Tensor, x: torch.Tensor, w: CanonicalWeight, bias: torch.Tensor | None = None) -> None:
    exact = reference.wna16_linear(x, w, bias)
    norm = x.double().norm(dim=-1, keepdim=True) * magnitudes(w).norm(dim=1)
    bound = C * EPS32 * norm + EPS_OUT[y.dtype] * exact.abs() + TINY[y.dtype]
    worst = ((y.double() - exact).abs() / bound).max() if y.numel() else torch.tensor(0.0)
    assert worst <= 1, f"error is {float(worst):.2f} of the bound"


@settings(max_examples=60, deadline=None)
@given(weights(), st.integers(1, 40), st.sampled_from(ACTIVATIONS), st.booleans(), st.integers(0, 2**31))
def test_any_weight_any_activation(w: CanonicalWeight, m: int, dtype: torch.dtype, biased: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(m, w.in_features, generator=generator).to(dtype)
    bias = torch.randn(w.out_features, generator=generator).to(dtype) if biased else None
    assert_close(linear(x, pack(w), bias), x, w, bias)


@settings(max_examples=40, deadline=None)
@given(weights(max_n=40, max_k=200), st.sampled_from(ACTIVATIONS), st.integers(1, 20))
def test_one_hot_returns_each_weight_exactly(w: CanonicalWeight, dtype: torch.dtype, rows: int) -> None:
    packed, k = pack(w), w.in_features
    eye = torch.eye(k, dtype=dtype)
    y = torch.cat([linear(part, packed) for part in eye.split(rows)])
    assert torch.equal(y, w.dequantize(torch.float32).T.to(dtype))


@pytest.mark.parametrize("dtype", ACTIVATIONS)
@pytest.mark.parametrize("m", [1, 3, 17, 70, 300])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_model_sized(bits: int, m: int, dtype: torch.dtype) -> None:
    w = random_weight(192, 1024, bits, 128, "integer", scale_dtype=torch.float16)
    x = torch.randn(m, 1024, generator=torch.Generator().manual_seed(1)).to(dtype)
    assert_close(linear(x, pack(w)), x, w)


def test_shapes_of_input() -> None:
    w = random_weight(24, 64, 4, 32)
    packed = pack(w)
    x = torch.randn(2, 3, 64)
    assert_close(linear(x, packed), x, w)
    assert_close(linear(x.view(6, 64), packed), x.view(6, 64), w)
    assert linear(x[:0], packed).shape == (0, 3, 24)
    assert linear(x[0, 0], packed).shape == (24,)
    strided = torch.randn(64, 5).T
    assert_close(linear(strided, packed), strided, w)


def test_inputs_that_do_not_fit_are_refused() -> None:
    packed = pack(random_weight(24, 64, 4, 32))
    with pytest.raises(ValueError, match="64"):
        linear(torch.randn(2, 32), packed)
    with pytest.raises(ValueError, match="bf16"):
        linear(torch.randn(2, 64, dtype=torch.float64), packed)
    with pytest.raises(ValueError, match="bias"):
        linear(torch.randn(2, 64), packed, torch.zeros(23))


def assert_close_a8(y: torch.Tensor, x: torch.Tensor, w: CanonicalWeight, bias: torch.Tensor | None = None) -> None:
    """The bound of this module against the quantized activations; and half a step of each against x itself."""
    q, scale = reference.quantize_segments(x, w)
    rounded = q.double() * scale.double()
    assert bool(((rounded - x.double()).abs() <= scale.double() * (0.5 + 1e-4)).all())
    assert_close(y, rounded, w, bias)
    exact = reference.wna16_linear(x, w, bias)
    steps = 0.5001 * scale.double() @ w.dequantize(torch.float64).abs().T
    norm = rounded.norm(dim=-1, keepdim=True) * magnitudes(w).norm(dim=1)
    bound = steps + C * EPS32 * norm + EPS_OUT[y.dtype] * (exact.abs() + steps) + TINY[y.dtype]
    assert bool(((y.double() - exact).abs() <= bound).all())


@settings(max_examples=30, deadline=None)
@given(weights(max_bits=7), st.integers(1, 20), st.sampled_from(ACTIVATIONS), st.booleans(), st.integers(0, 2**31))
def test_int8_activations_in_groups(w: CanonicalWeight, m: int, dtype: torch.dtype, biased: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(m, w.in_features, generator=generator).to(dtype)
    x[0] = 0
    bias = torch.randn(w.out_features, generator=generator).to(dtype) if biased else None
    assert_close_a8(linear_a8(x, pack(w), bias), x, w, bias)


def test_int8_activations_pass_nan_and_infinity_on() -> None:
    x = torch.randn(3, 64)
    x[1, 5], x[2, 40] = float("nan"), float("inf")
    y = linear_a8(x, pack(random_weight(24, 64, 4, 32)))
    assert y[0].isfinite().all()
    assert y[1:].isnan().all()


def test_environment_asks_for_int8_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    x, packed, wide = torch.randn(3, 64), pack(random_weight(24, 64, 4, 32)), pack(random_weight(24, 64, 8, 32))
    plain = [linear(x, packed), linear(x, wide)]
    try:
        for value, chosen in (("1", linear_a8(x, packed)), ("0", plain[0])):
            monkeypatch.setenv("VQP_CPU_W4A8", value)
            library.int8_activations.cache_clear()
            assert torch.equal(linear(x, packed), chosen)
            assert torch.equal(linear(x, wide), plain[1])
        assert not torch.equal(linear_a8(x, packed), plain[0])
        monkeypatch.setenv("VQP_CPU_W4A8", "yes")
        library.int8_activations.cache_clear()
        with pytest.raises(SettingError, match="VQP_CPU_W4A8=yes"):
            linear(x, packed)
    finally:
        library.int8_activations.cache_clear()


def test_int8_activations_refuse_eight_bits_and_fp8() -> None:
    for w in (random_weight(16, 64, 8, 32), random_weight(16, 64, 8, kind="fp8_e4m3")):
        with pytest.raises(ValueError, match="2 to 7 bits"):
            linear_a8(torch.randn(1, 64), pack(w))


INT8_SCHEMES = ["symmetric", "asymmetric", "static", "static_zero"]


def int8_case(scheme: str) -> dict[str, object]:
    if scheme.startswith("static"):
        zero = torch.tensor([7], dtype=torch.int32) if scheme == "static_zero" else None
        return {"in_scale": torch.tensor([0.02]), "in_zero": zero}
    return {"symmetric": scheme == "symmetric"}


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 70),
    st.integers(1, 300),
    st.sampled_from(INT8_SCHEMES),
    st.sampled_from(ACTIVATIONS),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_w8a8_equals_the_reference(
    m: int, n: int, k: int, scheme: str, dtype: torch.dtype, biased: bool, seed: int
) -> None:
    """Integers inside, and one FP32 rounding order: equal to the last bit."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-128, 128, (n, k), dtype=torch.int8, generator=generator)
    scales = torch.rand(n, generator=generator) * 0.1
    x = (torch.randn(m, k, generator=generator) + 0.5).to(dtype)
    x[0] = 0
    bias = torch.randn(n, generator=generator) if biased else None
    case = int8_case(scheme)
    y = linear_int8(x, pack_int8(codes, scales), bias, **case)  # type: ignore[arg-type]
    expected = reference.w8a8_linear(x, codes, scales, bias, **case)  # type: ignore[arg-type]
    assert torch.equal(y, expected.to(dtype))


@pytest.mark.parametrize("scheme", INT8_SCHEMES)
def test_quantized_activation_is_within_half_a_step(scheme: str) -> None:
    x = torch.randn(8, 200) + 0.3
    q, scale, zero = reference.quantize_activation(x, **int8_case(scheme))  # type: ignore[arg-type]
    inside = (q > -128) & (q < 127)
    error = ((q - zero) * scale - x).abs()
    assert bool((error <= scale * 0.5001)[inside].all())
    if not scheme.startswith("static"):
        assert bool((error <= scale * 1.0001).all())


@pytest.mark.parametrize("op", ["wna16_linear", "w4a8_linear", "w8a8_linear"])
def test_opcheck(op: str) -> None:
    x = torch.randn(3, 64)
    if op != "w8a8_linear":
        p = pack(random_weight(24, 64, 4, 32, "integer", order="shuffled"))
        args = (x, p.data, p.scales, p.zeros, p.perm, torch.randn(24), p.kind, p.bits, p.group_size, p.n, p.k)
    else:
        q = pack_int8(torch.randint(-128, 128, (24, 64), dtype=torch.int8), torch.rand(24))
        args = (x, q.data, q.scales, q.sums, None, None, None, True, q.n, q.k)  # type: ignore[assignment]
    torch.library.opcheck(getattr(torch.ops.vqp, op).default, args)


def test_under_torch_compile() -> None:
    packed = pack(random_weight(24, 64, 4, 32))

    @torch.compile(backend="aot_eager", fullgraph=True, dynamic=True)
    def model(x: torch.Tensor) -> torch.Tensor:
        return linear(torch.relu(x), packed) * 2

    x = torch.randn(5, 64)
    assert torch.equal(model(x), linear(torch.relu(x), packed) * 2)
