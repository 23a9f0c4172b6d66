"""Which kernel runs a weight, how many bytes it keeps, and kernels from outside."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from vllm_quant_kernels import registry
from vllm_quant_kernels.canonical import CanonicalWeight
from vllm_quant_kernels.kernel import Device, Kernel, Packed
from vllm_quant_kernels.registry import choose, kernels, register, unregister
from vllm_quant_kernels.scheme import (
    E4M3,
    E5M2,
    PER_CHANNEL,
    PER_TENSOR,
    ActivationScheme,
    Codebook,
    Int,
    ScaleType,
    WeightScheme,
)

CPU, HOPPER, AMPERE = Device("cpu"), Device("cuda", (9, 0)), Device("cuda", (8, 0))
W8A8 = WeightScheme(Int(8), PER_CHANNEL, activation=ActivationScheme(Int(8)))
FP8 = WeightScheme(E4M3, PER_CHANNEL, activation=ActivationScheme(E4M3))
FP8_BLOCKS = WeightScheme(
    E4M3, 128, block=(128, 128), activation=ActivationScheme(E4M3, strategy="group", group_size=128)
)
STATIC = {"low": torch.tensor(-3.0), "high": torch.tensor(2.5), "scale": torch.tensor(0.02)}


@pytest.fixture(autouse=True)
def switched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CUDA kernels take part; nothing of them is launched."""
    monkeypatch.setenv("VQP_CUDA_KERNELS", "1")
    monkeypatch.delenv("VQP_CUDA_FP8", raising=False)
    monkeypatch.setattr("vllm_quant_kernels.cuda.library.load", lambda: None)
    monkeypatch.setattr("vllm_quant_kernels.cuda.w8a8.native.library", lambda: None)


def label(scheme: WeightScheme, device: Device, n: int = 256, k: int = 512, **options: Any) -> str:
    return choose(scheme, n, k, device, **options).kernel.label(scheme)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("device", [CPU, HOPPER, AMPERE])
def test_integers_run_with_16_bit_activations(bits: int, device: Device) -> None:
    for scheme in (WeightScheme(Int(bits)), WeightScheme(Int(bits), 96, symmetric=False, act_order=True)):
        assert label(scheme, device) == f"vqp W{bits}A16"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"symmetric": False}, "asymmetric weights"),
        ({"group_size": 128}, "groups of 128"),
        ({"act_order": True}, "act-order"),
        ({"activation": None}, "16-bit activations"),
        ({"activation": ActivationScheme(Int(8), strategy="group", group_size=128)}, "per group"),
        ({"activation": ActivationScheme(E4M3)}, "INT8 weights with FP8 activations"),
    ],
)
@pytest.mark.parametrize("device", [CPU, HOPPER])
def test_a_w8a8_scheme_that_int8_gemms_do_not_run(change: dict[str, Any], reason: str, device: Device) -> None:
    assert label(W8A8, device) == "vqp W8A8"
    assert label(replace(W8A8, group_size=PER_TENSOR), device) == "vqp W8A8"
    found = choose(replace(W8A8, **change), 256, 512, device)
    assert found.kernel.name == f"{device.type}-wna16"
    assert reason in found.reasons[f"{device.type}-w8a8"]


def test_fp8_gemms_need_fp8_tensor_cores_and_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    for scheme in (FP8, FP8_BLOCKS):
        assert label(scheme, HOPPER) == "vqp W8A8"
        assert label(scheme, Device("cuda")) == "vqp W8A8", "an unknown capability is no reason"
        assert label(scheme, AMPERE) == label(scheme, CPU) == label(replace(scheme, activation=None), HOPPER)
        assert "FP8 tensor cores" in choose(scheme, 256, 512, AMPERE).reasons["cuda-w8a8"]
    wide = replace(FP8_BLOCKS, block=(64, 128))
    assert "blocks of 64 x 128" in choose(wide, 256, 512, HOPPER).reasons["cuda-w8a8"]
    monkeypatch.setenv("VQP_CUDA_FP8", "w8a16")
    assert label(FP8, HOPPER) == "vqp W8A16"


def test_what_no_kernel_reads_is_dequantized() -> None:
    e5m2 = WeightScheme(E5M2, PER_CHANNEL)
    assert label(e5m2, CPU) == "vqp W8A16"
    nested = WeightScheme(Int(4), 32, scale=ScaleType("int6", per_super=8))
    for scheme, device in ((e5m2, HOPPER), (WeightScheme(Codebook(4, "nf4"), 64), CPU), (nested, CPU)):
        found = choose(scheme, 256, 512, device)
        assert found.kernel.name == "dequantize"
        assert set(found.reasons) >= {f"{device.type}-w8a8", f"{device.type}-wna16"}
    assert label(WeightScheme(), HOPPER, dtype="float32") == "dequantize"
    assert label(WeightScheme(), Device("cuda", (7, 5))) == "dequantize"
    with pytest.raises(registry.NoKernelError, match="hadamard"):
        choose(WeightScheme(transform="hadamard"), 256, 512, CPU)


def test_experts_have_kernels_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(WeightScheme(), 256, 512, HOPPER, operation="experts").kernel.name == "cuda-experts"
    assert "cuda-experts" not in {kernel.name for kernel in kernels()}
    monkeypatch.setenv("VQP_CUDA_KERNELS", "0")
    with pytest.raises(registry.NoKernelError, match="VQP_CUDA_KERNELS is 0"):
        choose(WeightScheme(), 256, 512, HOPPER, operation="experts")


def test_a_cuda_kernel_that_is_proven_needs_no_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VQP_CUDA_KERNELS")
    found = choose(WeightScheme(), 256, 512, HOPPER)
    assert found.kernel.proof != "unproven"
    assert "not proven" in found.reasons["cuda-wna16"]

    def why_not(name: str, scheme: WeightScheme, device: Device) -> str | None:
        return None if (name, device) == ("cuda-wna16", HOPPER) else "not proven: no verdict"

    monkeypatch.setattr("vllm_quant_kernels.cuda.verify.proven.why_not", why_not)
    assert choose(WeightScheme(), 256, 512, HOPPER).kernel.name == "cuda-wna16"
    assert choose(WeightScheme(), 256, 512, AMPERE).kernel.name != "cuda-wna16"
    assert "not proven" in choose(FP8, 256, 512, HOPPER).reasons["cuda-w8a8"]
    monkeypatch.setenv("VQP_CUDA_KERNELS", "0")
    assert "VQP_CUDA_KERNELS is 0" in choose(WeightScheme(), 256, 512, HOPPER).reasons["cuda-wna16"]


def weight(scheme: WeightScheme, n: int, k: int, seed: int = 0) -> CanonicalWeight:
    """A random weight whose tables no packing can narrow."""
    generator = torch.Generator().manual_seed(seed)
    group = scheme.group_of(k)
    groups = scheme.groups(k)
    limit = 1 << min(scheme.bits, 6)
    codes = torch.randint(0, limit, (n, k), generator=generator, dtype=torch.uint8)
    if scheme.block is not None:
        tiles = torch.rand(-(-n // 128), groups, generator=generator) + 0.5
        scales = tiles.repeat_interleave(128, 0)[:n].contiguous()
    else:
        scales = torch.rand(n, groups, generator=generator) + 0.5
    scales = scales.to(getattr(torch, scheme.scale.dtype))
    zeros = None
    if scheme.is_int and not scheme.symmetric:
        zeros = torch.randint(0, limit, (n, groups), generator=generator, dtype=torch.uint8)
    order = torch.randperm(k, generator=generator)
    g_idx = (order // group).int() if scheme.act_order else None
    kind: Any = "int" if scheme.is_int else "fp8_e4m3"
    return CanonicalWeight(codes, scales, scheme.bits, group, zeros, kind, g_idx)


INT8_STATIC = replace(W8A8, activation=ActivationScheme(Int(8), "tensor", dynamic=False))
INT8_STATIC_ASYM = replace(W8A8, activation=ActivationScheme(Int(8), "tensor", dynamic=False, symmetric=False))
SCHEMES = [
    *(WeightScheme(Int(bits), group) for bits in (2, 3, 5, 8) for group in (16, 48, 128, PER_CHANNEL)),
    *(WeightScheme(Int(bits), group, symmetric=False) for bits in (4, 7, 8) for group in (32, 24, PER_TENSOR)),
    *(WeightScheme(Int(4), group, act_order=True, symmetric=s) for group in (32, 128, 40, -1) for s in (True, False)),
    WeightScheme(E4M3, 128),
    W8A8,
    INT8_STATIC,
    INT8_STATIC_ASYM,
    FP8,
    replace(FP8, activation=ActivationScheme(E4M3, "tensor", dynamic=False)),
    FP8_BLOCKS,
]
FITTING = [
    (kernel, scheme)
    for kernel in (*kernels(), *kernels(operation="experts"))
    for scheme in SCHEMES
    if "w8a8" not in kernel.name or scheme.activation is not None
]


@pytest.mark.parametrize(("n", "k"), [(48, 256), (37, 200), (300, 509)])
@pytest.mark.parametrize(("kernel", "scheme"), FITTING, ids=lambda v: v.name if isinstance(v, Kernel) else v.describe())
def test_packed_bytes_are_those_of_the_tensors(kernel: Kernel, scheme: WeightScheme, n: int, k: int) -> None:
    scheme = replace(scheme, scale=ScaleType("float32"))
    if kernel.can_run(scheme, n, k, Device(kernel.device or "cpu")) is not None:
        pytest.skip("another kernel's")
    w = weight(scheme, n, k)
    if kernel.refuses(w) is not None:
        pytest.skip("another kernel's")
    packed = kernel.pack(w, scheme, STATIC)
    assert kernel.packed_bytes(scheme, n, k) == packed.nbytes
    assert packed.out_features == n
    exact = w.dequantize()
    assert torch.allclose(kernel.dequantize(packed, packed.tensors), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["cpu-wna16", "cuda-wna16", "dequantize"])
def test_16_bit_scales_count_as_such(name: str, dtype: str) -> None:
    kernel = next(kernel for kernel in kernels() if kernel.name == name)
    scheme = WeightScheme(Int(4), 32, scale=ScaleType(dtype))
    packed = kernel.pack(weight(scheme, 40, 96), scheme)
    assert packed.nbytes == kernel.packed_bytes(scheme, 40, 96)
    assert packed.nbytes == kernel.packed_bytes(WeightScheme(Int(4), 32), 40, 96, itemsize=2)


@pytest.mark.parametrize("name", ["cpu-wna16", "cuda-wna16"])
def test_bytes_of_a_shard_of_an_act_order_weight_are_near(name: str) -> None:
    kernel = next(kernel for kernel in kernels() if kernel.name == name)
    scheme = WeightScheme(Int(4), 128, act_order=True, scale=ScaleType("float16"))
    shard = weight(scheme, 64, 4096).columns(1024, 2048)
    real = kernel.pack(shard, scheme).nbytes
    assert abs(kernel.packed_bytes(scheme, 64, 1024, full_k=4096) - real) <= 0.06 * real


def test_a_shard_within_blocks_of_scales_is_refused_by_its_weight() -> None:
    w = weight(replace(FP8_BLOCKS, scale=ScaleType("float32")), 300, 256)
    assert choose(FP8_BLOCKS, 256, 256, HOPPER, weight=w.rows(0, 256)).kernel.name == "cuda-w8a8"
    found = choose(FP8_BLOCKS, 200, 256, HOPPER, weight=w.rows(100, 300))
    assert found.kernel.name == "cuda-wna16"
    assert "128 x 128" in found.reasons["cuda-w8a8"]


class Identity(Kernel):
    """A kernel from outside: sees 1-bit integers as codes minus a half, in one file."""

    name = "toy"
    device = "cpu"
    priority = 500

    def can_run(self, scheme: WeightScheme, n: int, k: int, device: Device, dtype: str = "bfloat16") -> str | None:
        return None if scheme.value == Int(1) else "more than one bit"

    def packed_bytes(self, scheme: WeightScheme, n: int, k: int, full_k: int | None = None, itemsize: int = 2) -> int:
        return n * k

    def pack(self, weight: CanonicalWeight, scheme: WeightScheme, static: Any = None) -> Packed:
        return Packed(self, {"": weight.codes}, weight.out_features, None)

    def apply(self, packed: Packed, tensors: Any, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.dequantize(packed, tensors).to(x.dtype), bias)

    def dequantize(self, packed: Packed, tensors: Any) -> torch.Tensor:
        return tensors[""].float() - 0.5


@pytest.fixture
def toy() -> Iterator[Kernel]:
    kernel = Identity()
    register(kernel)
    yield kernel
    unregister("toy")


def test_a_kernel_from_outside_is_chosen(toy: Kernel) -> None:
    scheme = WeightScheme(Int(1), PER_CHANNEL)
    assert choose(scheme, 4, 8, CPU).kernel is toy
    assert choose(WeightScheme(), 4, 8, CPU).reasons["toy"] == "more than one bit"
    register(toy)
    with pytest.raises(ValueError, match="registered already"):
        register(Identity())


def test_the_registry_answers_without_torch() -> None:
    code = (
        "import sys; from vllm_quant_kernels.kernel import Device; from vllm_quant_kernels.registry import choose\n"
        "from vllm_quant_kernels.scheme import WeightScheme as W\n"
        "kernel = choose(W(), 64, 256, Device('cpu')).kernel\n"
        "print(kernel.label(W()), kernel.packed_bytes(W(), 64, 256), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["vqp", "W4A16", str(64 * 128 + 64 * 2 * 2), "False"]
