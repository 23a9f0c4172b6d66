"""Bytes of quantized matrices: by hand, and against what this plugin's kernels really pack."""

import pytest
import torch

from vllm_quant_kernels.canonical import CanonicalWeight, kind_of
from vllm_quant_kernels.cpu.pack import pack, pack_int8
from vllm_quant_kernels.cuda.pack import pack_cuda
from vllm_quant_kernels.scheme import E4M3, ActivationScheme, Int
from vllm_quant_plugin.formats import get_format, parse_quantization_config
from vllm_quant_plugin.formats.compressed_tensors import INT_QUANTIZED, PACK_QUANTIZED
from vllm_quant_plugin.formats.fp4 import MXFP4, NVFP4
from vllm_quant_plugin.formats.gptq import GPTQ_V2
from vllm_quant_plugin.formats.modelopt import STORAGE as MODELOPT
from vllm_quant_plugin.schemes import Storage, StoredScheme
from vllm_quant_serve.plan.memory.storage import kernel_bytes


def matrix_bytes(scheme: StoredScheme, n: int, k: int, full_k: int, itemsize: int) -> int:
    return get_format(scheme).in_tree_bytes(scheme, n, k, full_k, itemsize)


SHAPES = [(48, 256), (100, 512), (2560, 3072)]


def canonical(n: int, k: int, scheme: StoredScheme, scale_dtype: torch.dtype) -> CanonicalWeight:
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
    return CanonicalWeight(codes, scales, scheme.bits, scheme.group_of(k), zeros, kind_of(scheme.value), g_idx)


@pytest.mark.parametrize(("n", "k"), SHAPES)
@pytest.mark.parametrize(
    "scheme",
    [
        StoredScheme(Int(3), 128, storage=GPTQ_V2),
        StoredScheme(Int(4), 128, act_order=True, storage=GPTQ_V2),
        StoredScheme(Int(8), 64, symmetric=False, storage=GPTQ_V2),
        StoredScheme(Int(4), 128, symmetric=False, storage=Storage("awq")),
        StoredScheme(Int(5), 32, storage=PACK_QUANTIZED),
        StoredScheme(Int(8), -1, storage=INT_QUANTIZED),
    ],
    ids=lambda s: s.describe(),
)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_packed_bytes_are_those_of_the_kernels(scheme, n, k, device, monkeypatch):
    monkeypatch.setenv("VQP_CUDA_KERNELS", "1")
    wide = scheme.storage == INT_QUANTIZED
    weight = canonical(n, k, scheme, torch.float32 if wide else torch.float16)
    real = (pack(weight) if device == "cpu" else pack_cuda(weight)).nbytes
    ours = kernel_bytes(scheme, n, k, k, 2, device)
    assert abs(ours - real) / real <= 0.005


@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_packed_int8_with_int8_activations(n, k):
    scheme = StoredScheme(Int(8), -1, activation=ActivationScheme(Int(8)), storage=INT_QUANTIZED)
    real = pack_int8(torch.zeros(n, k, dtype=torch.int8), torch.ones(n)).nbytes
    assert kernel_bytes(scheme, n, k, k, 2, "cpu") == real


def test_formats_of_vllm_by_hand():
    n, k, groups = 256, 1024, 8
    assert matrix_bytes(StoredScheme(Int(4), 128, symmetric=False, storage=Storage("awq")), n, k, k, 2) == (
        n * k // 2 + groups * n * 2 + groups * n // 2
    )
    assert (
        matrix_bytes(StoredScheme(E4M3, 128, block=(128, 128), storage=Storage("fp8")), n, k, k, 2) == n * k + 2 * 8 * 4
    )
    assert matrix_bytes(StoredScheme.of(NVFP4, MODELOPT), n, k, k, 2) == n * k // 2 + n * k // 16 + 8
    assert (
        matrix_bytes(StoredScheme.of(MXFP4, Storage("mxfp4")), 2880, 2880, 2880, 2)
        == 2944 * 2944 // 2 + 2944 * 2944 // 32
    )  # padded to 128


def test_act_order_keeps_every_groups_scale_on_each_rank():
    scheme = StoredScheme(Int(4), 128, act_order=True, storage=GPTQ_V2)
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
    found = parse_quantization_config(config)
    name = "model.layers.0.mlp.experts.0.gate_proj"
    scheme = found.scheme_for(name)
    assert scheme is not None
    assert scheme.describe() == label
    if "exclude_modules" in config:
        assert found.scheme_for("lm_head") is None
        assert found.scheme_for("model.vision_tower.layers.0.mlp.fc1") is None
