"""The kernels that planner and ``inspect`` name are those that vLLM's own functions choose, on every generation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.support.fake_cuda import fake_cuda
from vllm_quant_kernels.kernel import Device
from vllm_quant_kernels.registry import choose, kernels
from vllm_quant_kernels.scheme import E4M3, E5M2, PER_CHANNEL, PER_TENSOR, ActivationScheme, Int, WeightScheme
from vllm_quant_plugin import compat_adapter as vllm
from vllm_quant_plugin.adapter import names
from vllm_quant_plugin.adapter.forms import Form, columns_of, forms
from vllm_quant_plugin.adapter.scaled import int8_kernels

CAPABILITIES = [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)]
SHAPES = [(256, 512), (96, 512), (4096, 4128), (72, 96)]
INT8 = WeightScheme(Int(8), PER_CHANNEL, activation=ActivationScheme(Int(8)))
FP8 = WeightScheme(E4M3, PER_CHANNEL, activation=ActivationScheme(E4M3))
BLOCKS = WeightScheme(E4M3, 128, block=(128, 128), activation=ActivationScheme(E4M3, "group", group_size=128))


def in_vllm(form: Form, n: int, k: int, dtype: str) -> str | None:
    """The name of the class that vLLM chooses."""
    config = vllm.MPLinearLayerConfig(
        full_weight_shape=(k, n), partition_weight_shape=(k, n), weight_type=vllm.weight_type(form.bits, form.zeros),
        act_type=getattr(torch, dtype), group_size=form.group, zero_points=form.zeros,
    )  # fmt: skip
    try:
        return vllm.choose_mp_linear_kernel(config).__name__.removesuffix("LinearKernel")
    except ValueError:
        return None


@pytest.mark.parametrize("humming", [True, False], ids=["humming", "no humming"])
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_integers(capability: tuple[int, int], humming: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda(monkeypatch, capability, with_humming=humming)
    device, asked = Device("cuda", capability), 0
    for bits in range(2, 9):
        for zeros in (True, False):
            for group in (PER_CHANNEL, 32, 64, 128):
                for n, k in SHAPES:
                    if k % max(group, 1) == 0:
                        form, asked = Form(bits, group, zeros), asked + 1
                        expected = in_vllm(form, n, k, "bfloat16")
                        assert names.integer_kernel(form, n, k, device, "bfloat16", humming) == expected, form
    assert asked > 100


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_scheme_has_a_kernel_with_a_name(capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda(monkeypatch, capability)
    device = Device("cuda", capability)
    for bits in range(2, 9):
        for group in (PER_TENSOR, PER_CHANNEL, 16, 32, 64, 96, 128, 256):
            for symmetric in (True, False):
                for act_order in (True, False):
                    scheme = WeightScheme(Int(bits), group, symmetric=symmetric, act_order=act_order)
                    kernel = choose(scheme, 256, 1536, device).kernel
                    assert kernel.name == "vllm-weight-only", scheme.describe()
                    assert kernel.label_on(scheme, 256, 1536, device) in ("vLLM Machete", "vLLM Marlin", "vLLM Humming")
                    dense = 256 * 1536 * bits // 8
                    tables = 256 * scheme.groups(1536) * 3 * (3 if group == 96 else 2 if group == 256 else 1)
                    assert kernel.packed_bytes(scheme, 256, 1536) <= dense + tables + 4 * 1536


def test_what_8_bit_gemms_run_and_what_they_do_not() -> None:
    def named(scheme: WeightScheme, capability: tuple[int, int]) -> str:
        device = Device("cuda", capability)
        return choose(scheme, 256, 512, device).kernel.label_on(scheme, 256, 512, device)

    assert [named(INT8, c) for c in ((8, 0), (9, 0), (10, 0))] == ["vLLM CUTLASS INT8"] * 2 + ["vLLM Triton INT8"]
    assert named(FP8, (8, 0)).endswith("Humming FP8") or named(FP8, (8, 0)).endswith("Marlin FP8")
    assert named(FP8, (8, 9)) == named(FP8, (9, 0)) == "vLLM CUTLASS FP8"
    assert [named(BLOCKS, c) for c in ((8, 9), (9, 0))] == ["vLLM Marlin FP8", "vLLM DeepGEMM"]
    assert named(replace(FP8, activation=None), (9, 0)) in ("vLLM Humming FP8", "vLLM Marlin FP8")
    assert named(WeightScheme(E5M2, PER_CHANNEL), (9, 0)) == "dequantize"
    assert named(replace(INT8, symmetric=False), (9, 0)) == "vLLM Machete"


def test_ours_come_first_only_where_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    hopper = Device("cuda", (9, 0))
    assert [k.name for k in kernels(hopper)] == [
        "cuda-w8a8",
        "vllm-w8a8",
        "cuda-wna16",
        "vllm-weight-only",
        "dequantize",
    ]
    monkeypatch.setenv("VQP_CUDA_KERNELS", "1")
    assert choose(WeightScheme(), 256, 512, hopper).kernel.name == "cuda-wna16"
    monkeypatch.setenv("VQP_CUDA_KERNELS", "0")
    assert choose(WeightScheme(), 256, 512, hopper).kernel.name == "vllm-weight-only"
    assert choose(WeightScheme(), 256, 512, hopper, "float32").kernel.name == "dequantize"
    assert choose(WeightScheme(), 256, 512, Device("xpu")).kernel.name == "dequantize"
    assert choose(WeightScheme(), 256, 512, Device("cuda", (7, 5))).kernel.name == "dequantize", "no bfloat16"
    assert choose(WeightScheme(), 256, 512, Device("cuda", (7, 5)), "float16").kernel.name == "vllm-weight-only"


@pytest.mark.parametrize(("capability", "first"), [((8, 0), "Cutlass"), ((9, 0), "Cutlass"), ((10, 0), "Triton")])
def test_int8_on_blackwell_is_tritons(capability: tuple[int, int], first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda(monkeypatch, capability)
    config = vllm.Int8ScaledMMLinearLayerConfig(is_channelwise=True, is_static_input_scheme=False, input_symmetric=True)
    found = vllm.choose_scaled_mm_linear_kernel(config, int8_kernels(), quantization="int8_w8a8")
    assert found.__name__.startswith(first)


def test_a_process_without_a_gpu_packs_for_no_kernel_of_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.kernels.weights import random_weight

    weight = random_weight(64, 256, 4, 128)
    assert choose(WeightScheme(), 64, 256, Device("cuda"), weight=weight).kernel.name == "dequantize"


def test_forms_prefer_the_codes_of_the_checkpoint() -> None:
    assert [(f.bits, f.zeros, f.folded, f.offset) for f in forms(3, "codes", (128,))] == [
        (3, True, False, False), (4, False, True, False), (4, False, True, True),
    ]  # fmt: skip
    assert [(f.bits, f.offset) for f in forms(8, "wide", (64,))] == [(8, True)]
    shard = columns_of(WeightScheme(act_order=True), 2048, 4096)
    assert shard is not None
    assert shard.gathered
    assert shard.count == 2048 + 16 * 32
    assert columns_of(WeightScheme(Int(4), 40), 1280) is None
