"""Bytes of quantized matrices: by hand, and against what this plugin's kernels really pack."""

import pytest
import torch

from vllm_quant_kernels.canonical import CanonicalWeight
from vllm_quant_kernels.cpu.pack import pack, pack_int8
from vllm_quant_kernels.cuda.pack import pack_cuda
from vllm_quant_plugin.scheme import ActivationScheme, Scheme
from vllm_quant_serve.plan.memory.storage import matrix_bytes, packed_bytes
from vllm_quant_serve.plan.model.schemes import MXFP4, NVFP4, read_scheme

SHAPES = [(48, 256), (100, 512), (2560, 3072)]


def canonical(n: int, k: int, scheme: Scheme, scale_dtype: torch.dtype) -> CanonicalWeight:
    generator = torch.Generator().manual_seed(n + k)
    groups = scheme.groups(k)
    codes = torch.randint(0, 1 << min(scheme.bits, 6), (n, k), generator=generator, dtype=torch.uint8)
    scales = torch.rand(n, groups, generator=generator) + 0.5
    # Not exactly representable in 16 bits, so that no narrowing hides a float32 table.
    scales = scales.to(scale_dtype)
    zeros = None
    if not scheme.symmetric:
        zeros = torch.randint(0, 1 << scheme.bits, (n, groups), generator=generator, dtype=torch.uint8)
    g_idx = torch.randperm(k, generator=generator) // scheme.group_of(k) if scheme.act_order else None
    return CanonicalWeight(codes, scales, scheme.bits, scheme.group_of(k), zeros, scheme.kind, g_idx)


@pytest.mark.parametrize(("n", "k"), SHAPES)
@pytest.mark.parametrize(
    "scheme",
    [
        Scheme("gptq", bits=3, group_size=128),
        Scheme("gptq", bits=4, group_size=128, act_order=True),
        Scheme("gptq", bits=8, group_size=64, symmetric=False),
        Scheme("awq", bits=4, group_size=128, symmetric=False),
        Scheme("pack-quantized", bits=5, group_size=32),
        Scheme("int-quantized", bits=8, group_size=-1),
    ],
    ids=lambda s: s.describe(),
)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_packed_bytes_are_those_of_the_kernels(scheme, n, k, device):
    wide = scheme.storage == "int-quantized"
    weight = canonical(n, k, scheme, torch.float32 if wide else torch.float16)
    real = (pack(weight) if device == "cpu" else pack_cuda(weight)).nbytes
    ours = packed_bytes(scheme, n, k, k, 2, device)
    assert abs(ours - real) / real <= 0.005


@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_packed_int8_with_int8_activations(n, k):
    scheme = Scheme("int-quantized", bits=8, group_size=-1, activation=ActivationScheme("int"))
    real = pack_int8(torch.zeros(n, k, dtype=torch.int8), torch.ones(n)).nbytes
    assert packed_bytes(scheme, n, k, k, 2, "cpu") == real


def test_formats_of_vllm_by_hand():
    n, k, groups = 256, 1024, 8
    assert matrix_bytes(Scheme("awq", bits=4, group_size=128, symmetric=False), n, k, k, 2) == (
        n * k // 2 + groups * n * 2 + groups * n // 2
    )
    assert matrix_bytes(Scheme("fp8", "fp8_e4m3", 8, 128, block=(128, 128)), n, k, k, 2) == n * k + 2 * 8 * 4
    assert matrix_bytes(NVFP4, n, k, k, 2) == n * k // 2 + n * k // 16 + 8
    assert matrix_bytes(MXFP4, 2880, 2880, 2880, 2) == 2944 * 2944 // 2 + 2944 * 2944 // 32  # padded to 128


def test_act_order_keeps_every_groups_scale_on_each_rank():
    scheme = Scheme("gptq", bits=4, group_size=128, act_order=True)
    whole, half = (matrix_bytes(scheme, 256, k, 1024, 2) for k in (1024, 512))
    scales = 8 * (256 * 2 + 256 // 2)
    assert half - scales == (whole - scales) // 2


@pytest.mark.parametrize(
    ("config", "label"),
    [
        ({"quant_method": "mxfp4"}, "MXFP4"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4", "exclude_modules": ["lm_head", "*vision*"]}, "NVFP4"),
        ({"quant_method": "modelopt", "quantization": {"quant_algo": "NVFP4"}}, "NVFP4"),
        ({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized", "ignore": ["lm_head"],
          "config_groups": {"g": {}}}, "NVFP4"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "FP8 tensor"),
    ],
)  # fmt: skip
def test_float_formats_are_read(config, label):
    found = read_scheme(config)
    name = "model.layers.0.mlp.experts.0.gate_proj"
    scheme = found.scheme_for(name)
    assert scheme is not None
    assert scheme.describe() == label
    if "exclude_modules" in config:
        assert found.scheme_for("lm_head") is None
        assert found.scheme_for("model.vision_tower.layers.0.mlp.fc1") is None
