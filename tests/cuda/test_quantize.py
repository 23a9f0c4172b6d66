"""Activation quantization: the kernel's source on the CPU against the formulas in PyTorch, bit for bit."""

from __future__ import annotations

import ctypes
import itertools

import pytest
import torch

from tests.cuda import emulated, emulated_w8a8
from vllm_quant_kernels.cuda.w8a8 import activation
from vllm_quant_kernels.cuda.w8a8.activation import FP8, INT8, Activations
from vllm_quant_kernels.cuda.w8a8.quantize import quantize_cuda

SCHEMES = {
    "int8": {"kind": INT8},
    "int8-asymmetric": {"kind": INT8, "symmetric": False},
    "int8-static": {"kind": INT8, "in_scale": torch.tensor([0.031])},
    "int8-static-zero": {
        "kind": INT8,
        "in_scale": torch.tensor([0.017]),
        "in_zero": torch.tensor([-37], dtype=torch.int32),
    },
    "fp8": {"kind": FP8},
    "fp8-static": {"kind": FP8, "in_scale": torch.tensor([0.0071])},
    "fp8-groups": {"kind": FP8, "group": 128},
}
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def rows(m: int, k: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Rows of all sizes and signs, one of zeros, one constant, one tiny, with exact middles between codes."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(m, k, generator=generator) * torch.logspace(-3, 3, m)[:, None]
    x[torch.rand(m, k, generator=generator) < 0.1] = 0
    if m > 5:
        x[1] = 0
        x[2] = 3.25
        x[3] = -torch.arange(k) % 127 - 0.5
        x[4] = 1e-7
        x[5] = x[5].abs()
    return x.to(dtype)


def same(found: Activations, expected: Activations, m: int) -> bool:
    scales = found.scales[..., :m] if found.scales.ndim == 2 else found.scales
    wanted = expected.scales[..., :m] if expected.scales.ndim == 2 else expected.scales
    zeros = found.zeros is expected.zeros is None or torch.equal(found.zeros, expected.zeros)  # type: ignore[arg-type]
    bits = (scales.view(torch.int32), wanted.contiguous().view(torch.int32))
    return torch.equal(found.q.view(torch.uint8), expected.q.view(torch.uint8)) and torch.equal(*bits) and zeros


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("shape", [(9, 64), (7, 200), (6, 1), (6, 131), (17, 256), (6, 2056)])
def test_codes_and_scales_are_the_reference(shape: tuple[int, int], scheme: str, dtype: torch.dtype) -> None:
    """Registers; whole and cut chunks; an odd K; several rows a block; more chunks than one a thread."""
    x = rows(*shape, dtype, seed=shape[1])
    found = emulated_w8a8.quantize(x, **SCHEMES[scheme], seed=shape[0])
    assert same(found, activation.quantize(x, **SCHEMES[scheme]), shape[0])


@pytest.mark.parametrize("shared_limit", [emulated_w8a8.SHARED, 4096], ids=["in-shared", "read-twice"])
@pytest.mark.parametrize("scheme", ["int8", "int8-asymmetric", "int8-static", "fp8"])
def test_long_rows(scheme: str, shared_limit: int) -> None:
    x = rows(2, 8200, torch.bfloat16)
    found = emulated_w8a8.quantize(x, **SCHEMES[scheme], shared_limit=shared_limit)
    assert same(found, activation.quantize(x, **SCHEMES[scheme]), 2)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_nan_and_infinity(scheme: str, dtype: torch.dtype) -> None:
    x = rows(8, 144, dtype)
    x[0, 3], x[6, 140], x[7] = torch.nan, torch.inf, torch.nan
    x[2, 17], x[3, 5], x[3, 6] = -torch.inf, torch.inf, -torch.inf
    found = emulated_w8a8.quantize(x, **SCHEMES[scheme])
    assert same(found, activation.quantize(x, **SCHEMES[scheme]), 8)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_rows_further_apart_than_their_length(scheme: str) -> None:
    store = torch.full((6, 400), torch.nan, dtype=torch.float16)
    store[:, :248] = rows(6, 248, torch.float16)
    for x in (store[:, :248], store[:, 8:245], store[:, 1:200]):
        found = emulated_w8a8.quantize(x, **SCHEMES[scheme])
        assert same(found, activation.quantize(x, **SCHEMES[scheme]), 6)


def test_every_fp8_rounding() -> None:
    """The conversion without an instruction for it: every code, all middles and their neighbours, BF16 values."""
    codes = torch.arange(0x7F, dtype=torch.uint8)
    values = codes.view(torch.float8_e4m3fn).float()
    middles = (values[1:].double() + values[:-1].double()).float() / 2
    near = torch.cat(
        [middles, torch.nextafter(middles, torch.zeros(())), torch.nextafter(middles, torch.full((), 500.0))]
    )
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16).float()
    every = every[every.abs() <= 448]
    for value in torch.cat([values, -values, near, -near, every[::7]]).tolist():
        found = emulated.library().vqp_emulator_e4m3(ctypes.c_float(value))
        expected = int(torch.tensor(value).to(torch.float8_e4m3fn).view(torch.uint8))
        assert found == expected, value


def test_scales_are_within_half_a_step() -> None:
    """The formulas mean what they say: each value is off by half a step of its code at most."""
    x = rows(9, 300, torch.bfloat16)
    for scheme in ("int8", "int8-asymmetric"):
        a = activation.quantize(x, **SCHEMES[scheme])
        error = (activation.dequantize(a, 300) - x.double()).abs()
        assert (error <= 0.501 * a.scales.double()[:, None] * (2 if scheme == "int8-asymmetric" else 1)).all()
    for scheme in ("fp8", "fp8-groups"):
        a = activation.quantize(x, **SCHEMES[scheme])
        error = (activation.dequantize(a, 300) - x.double()).abs()
        assert (error <= 2.0**-4 * x.double().abs() + 2.0**-10 * x.double().abs().amax(1, keepdim=True)).all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_operator_computes_the_reference_and_its_fake_has_its_shape(scheme: str) -> None:
    x = rows(6, 131, torch.bfloat16)
    real = quantize_cuda(x, **SCHEMES[scheme])
    assert same(real, activation.quantize(x, **SCHEMES[scheme]), 6)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = quantize_cuda(mode.from_tensor(x), **SCHEMES[scheme])
    for ours, theirs in ((fake.q, real.q), (fake.scales, real.scales), (fake.zeros, real.zeros)):
        assert (ours is None) == (theirs is None)
        assert ours is None or (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)


def test_what_no_kernel_has_is_refused() -> None:
    x = torch.zeros(2, 32, dtype=torch.bfloat16)
    one, zero = torch.ones(1), torch.zeros(1, dtype=torch.int32)
    refused = itertools.chain(
        [{"kind": 4}, {"kind": FP8, "symmetric": False}, {"kind": FP8, "in_scale": one, "in_zero": zero}],
        [{"kind": INT8, "in_zero": zero}, {"kind": INT8, "group": 128}, {"kind": FP8, "group": 64}],
        [{"kind": FP8, "group": 128, "in_scale": one}, {"kind": INT8, "in_scale": one.double()}],
    )
    for options in refused:
        with pytest.raises(ValueError, match=r"."):
            quantize_cuda(x, **options)
    with pytest.raises(ValueError, match="bf16 or fp16"):
        quantize_cuda(x.float(), INT8)
