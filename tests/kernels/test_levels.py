"""Every instruction set that this CPU has gives right results; so do threads, repeats and poisoned padding."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from tests.kernels.test_ops import ACTIVATIONS, INT8_SCHEMES, assert_close, assert_close_a8, int8_case
from tests.kernels.weights import random_weight
from vllm_quant_kernels import reference
from vllm_quant_kernels.cpu import library
from vllm_quant_kernels.cpu.layout import pack_planes, unpack_planes
from vllm_quant_kernels.cpu.ops import linear, linear_a8, linear_int8
from vllm_quant_kernels.cpu.pack import pack, pack_int8

ROWS = [1, 2, 3, 6, 13, 17, 45]


def usable_levels() -> list[str]:
    """The levels of this CPU, or one entry that runs the reference path where nothing is built."""
    if not library.available():
        return ["reference"]
    return list(library.LEVELS[: library.load().vqp_cpu_max_level() + 1])


@pytest.fixture(params=usable_levels())
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    before = library.level()
    if request.param != "reference":
        library.set_level(library.load(), request.param)
    yield request.param
    if before is not None:
        library.set_level(library.load(), before)


@pytest.mark.parametrize("kind", ["2", "3", "4", "5", "6", "7", "8", "fp8_e4m3", "fp8_e5m2"])
def test_products(level: str, kind: str) -> None:
    generator = torch.Generator().manual_seed(7)
    bits = int(kind) if kind.isdigit() else 8
    form = "int" if kind.isdigit() else kind
    cases = [(48, "floating", "none"), (32, "none", "none"), (64, "integer", "shuffled"), (None, "none", "none")]
    for group, zeros, order in cases:
        w = random_weight(75, 416, bits, group, zeros if form == "int" else "none", form, order)
        packed = pack(w)
        for i, m in enumerate(ROWS):
            # BF16 has kernels of its own; the other two differ only in how x is loaded.
            for dtype in (torch.bfloat16, ACTIVATIONS[1 + i % 2]):
                x = torch.randn(m, 416, generator=generator).to(dtype)
                assert_close(linear(x, packed), x, w)


@pytest.mark.parametrize("dtype", ACTIVATIONS)
def test_one_hot(level: str, dtype: torch.dtype) -> None:
    for bits in range(2, 9):
        for group in (16, 32):
            w = random_weight(33, 96, bits, group, "integer")
            for rows in (1, 8, 24):
                y = torch.cat([linear(part, pack(w)) for part in torch.eye(96, dtype=dtype).split(rows)])
                assert torch.equal(y, w.dequantize().T.to(dtype))


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7])
def test_int8_activations_in_groups(level: str, bits: int) -> None:
    for group, zeros, order in [(48, "floating", "none"), (64, "integer", "shuffled"), (None, "none", "none")]:
        w = random_weight(75, 416, bits, group, zeros, order=order)
        packed = pack(w)
        for m in (1, 6, 17):
            x = torch.randn(m, 416)
            assert_close_a8(linear_a8(x, packed), x, w)


@pytest.mark.parametrize("scheme", INT8_SCHEMES)
def test_w8a8(level: str, scheme: str) -> None:
    for k in (600, 1100):
        codes = torch.randint(-128, 128, (75, k), dtype=torch.int8)
        scales = torch.rand(75)
        packed, case = pack_int8(codes, scales), int8_case(scheme)
        for m in ROWS:
            x = torch.randn(m, k) * 3
            expected = reference.w8a8_linear(x, codes, scales, **case)  # type: ignore[arg-type]
            assert torch.equal(linear_int8(x, packed, **case), expected)  # type: ignore[arg-type]


def test_w8a8_extremes(level: str) -> None:
    """The largest products, of either sign, sum without saturation."""
    codes = torch.tensor([[-128], [127], [0]], dtype=torch.int8).expand(3, 1100).contiguous()
    packed = pack_int8(codes, torch.ones(3))
    for m in (1, 7, 33):
        x = torch.linspace(-1, 1, m).sign().mul(1000).view(m, 1).expand(m, 1100)
        case = {"in_scale": torch.tensor([1.0]), "in_zero": None}
        expected = reference.w8a8_linear(x, codes, torch.ones(3), **case)  # type: ignore[arg-type]
        assert torch.equal(linear_int8(x, packed, **case), expected)  # type: ignore[arg-type]


def test_same_bits_with_any_number_of_threads(level: str) -> None:
    threads = torch.get_num_threads()
    w = random_weight(400, 256, 4, 128, "integer")
    packed, int8 = pack(w), pack_int8(torch.randint(-128, 128, (400, 256), dtype=torch.int8), torch.rand(400))
    try:
        for dtype in ACTIVATIONS:
            for m in (1, 5, 40, 600):
                x = torch.randn(m, 256).to(dtype)
                torch.set_num_threads(1)
                one, one_a8, one_int8 = linear(x, packed), linear_a8(x, packed), linear_int8(x, int8)
                for count in (1, 2, 3):
                    torch.set_num_threads(count)
                    assert torch.equal(linear(x, packed), one)
                    assert torch.equal(linear_a8(x, packed), one_a8)
                    assert torch.equal(linear_int8(x, int8), one_int8)
    finally:
        torch.set_num_threads(threads)


def test_padding_is_never_used(level: str) -> None:
    w = random_weight(21, 70, 4, 70, "floating")
    packed = pack(w)
    codes = unpack_planes(packed.data, 4, 32)
    codes[21:], codes[:, 70:] = 15, 15
    scales, zeros = packed.scales.clone(), packed.zeros.clone()  # type: ignore[union-attr]
    scales[1, :, 5:], zeros[1, :, 5:] = float("nan"), float("nan")
    poisoned = dataclasses.replace(packed, data=pack_planes(codes, 4), scales=scales, zeros=zeros)
    for dtype in ACTIVATIONS:
        for m in (1, 7, 20):
            x = torch.randn(m, 70).to(dtype)
            # Rows past the last one are read: from memory that an earlier product has left full of NaN.
            nan = torch.full((64, 70), float("nan"), dtype=dtype)
            assert bool(linear(nan, packed).isnan().all())
            assert torch.equal(linear(x, poisoned), linear(x, packed))
            assert torch.equal(linear_a8(x, poisoned), linear_a8(x, packed))


def test_special_values_of_fp16_and_bf16(level: str) -> None:
    """Subnormals, signed zeros, infinities and NaN pass through a unit weight as PyTorch converts them."""
    codes = torch.full((16, 32), 8, dtype=torch.uint8)
    codes.fill_diagonal_(9)
    w = dataclasses.replace(random_weight(16, 32, 4, 32), codes=codes, scales=torch.ones(16, 1))
    packed = pack(w)
    values = torch.tensor([6e-8, -6e-8, 3e-5, 65504.0, -0.0, 1.0009765625, 2.0**-24, 3.1e-5]).half()
    for dtype in (torch.float16, torch.float32):
        x = torch.zeros(8, 32, dtype=dtype)
        x[torch.arange(8), torch.arange(8)] = values.to(dtype)
        assert torch.equal(linear(x, packed).diagonal(), values.to(dtype))
    for m in (1, 20):
        x = torch.full((m, 32), float("nan"), dtype=torch.bfloat16)
        assert bool(linear(x, packed).isnan().all())
        x = torch.zeros(m, 32, dtype=torch.bfloat16)
        for i, value in enumerate([2.0**-126, -0.0, 1e37, -1.5][:m]):
            x[i, i] = value
        assert torch.equal(linear(x, packed), x[:, :16])
        x[-1, 5] = float("inf")
        y = linear(x, packed)
        assert not bool(y[-1].isfinite().any())
        assert torch.equal(y[:-1], x[:-1, :16])


@pytest.mark.skipif(not library.available(), reason="no native library is built here")
@pytest.mark.parametrize(("isa", "expected"), [("scalar", "scalar"), ("sse9", "=sse9: must be scalar, avx2")])
def test_environment_forces_the_level(isa: str, expected: str) -> None:
    assert expected in level_with(isa)


@pytest.mark.skipif(not library.available(), reason="no native library is built here")
def test_amx_is_used_only_when_asked_for() -> None:
    best = library.LEVELS[library.load().vqp_cpu_max_level()]
    assert level_with("") == ("avx512_bf16" if best == "amx" else best)
    assert level_with("amx") == ("amx" if best == "amx" else f"VQP_CPU_ISA=amx: this CPU has no more than {best}")


def level_with(isa: str) -> str:
    """What a process with this VQP_CPU_ISA says of its level."""
    code = """
from vllm_quant_kernels.cpu import library
from vllm_quant_kernels.env import SettingError
try:
    print(library.level())
except (library.LibraryError, SettingError) as error:
    print(error)
"""
    environment = {**os.environ, "VQP_CPU_ISA": isa}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()
