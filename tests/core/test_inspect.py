"""What inspect says of real folders, for both devices."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from vllm_quant_kernels.scheme import E4M3, E5M2, ActivationScheme, Int
from vllm_quant_plugin.checkpoint import read_checkpoint
from vllm_quant_plugin.formats import Host, get_format
from vllm_quant_plugin.formats.compressed_tensors import INT_QUANTIZED
from vllm_quant_plugin.formats.gptq import GPTQ_V1, GPTQ_V2
from vllm_quant_plugin.inspect import as_dict, inspect_checkpoint, kernel_name
from vllm_quant_plugin.rtn import quantize_fp8, quantize_int
from vllm_quant_plugin.schemes import Storage, StoredScheme

CPU = Host("cpu", frozenset({"avx512f"}))
CASES: dict[str, tuple[dict[str, Any], StoredScheme]] = {
    "awq4": (
        {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True},
        StoredScheme(Int(4), 32, storage=Storage("awq")),
    ),
    "gptq3": (
        {"quant_method": "gptq", "bits": 3, "group_size": 32, "sym": True, "desc_act": False},
        StoredScheme(Int(3), 32, storage=GPTQ_V1),
    ),
    "fp8": ({"quant_method": "fp8", "activation_scheme": "dynamic"}, StoredScheme(E4M3, 0, storage=Storage("fp8"))),
}


@pytest.fixture(params=CASES)
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    config, scheme = CASES[request.param]
    weight = torch.randn(64, 128)
    canonical = quantize_fp8(weight, 0) if not scheme.is_int else quantize_int(weight, scheme.bits, 32, symmetric=False)
    tensors = {f"model.layers.0.mlp.up_proj.{k}": v for k, v in get_format(scheme).pack(canonical, scheme).items()}
    save_file(tensors | {"model.norm.weight": torch.ones(128)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["L"], "quantization_config": config}))
    return request.param, tmp_path


def test_shapes_schemes_and_verdict(checkpoint: tuple[str, Path]) -> None:
    name, folder = checkpoint
    on_cpu = inspect_checkpoint(read_checkpoint(folder), CPU)
    module = next(m for m in on_cpu.modules if m.name.endswith("up_proj"))
    assert (module.out_features, module.in_features) == (64, 128)
    assert module.scheme is not None
    automatic = {"awq4": False, "gptq3": True, "fp8": True}[name]
    assert on_cpu.automatic is automatic
    assert ("automatically" in as_dict(on_cpu)["verdict"]) is automatic
    on_gpu = inspect_checkpoint(read_checkpoint(folder), Host("cuda"))
    assert on_gpu.automatic is (name == "gptq3")


def test_unquantized_model() -> None:
    folder = Path(__file__).parents[2] / "vllm_quant_plugin/data/stdlib-llama"
    found = as_dict(inspect_checkpoint(read_checkpoint(folder), CPU))
    assert found["quant_method"] is None
    assert "Unquantized" in found["verdict"]
    assert sum(m["nbytes"] for m in found["modules"]) == found["nbytes"]


def test_the_kernel_of_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    int4, int8 = (
        StoredScheme(Int(4), storage=GPTQ_V2),
        StoredScheme(
            Int(8),
            -1,
            activation=ActivationScheme(Int(8)),
            storage=INT_QUANTIZED,
        ),
    )
    fp8 = StoredScheme(E4M3, 0, activation=ActivationScheme(E4M3), storage=Storage("fp8"))
    monkeypatch.delenv("VQP_CUDA_KERNELS", raising=False)
    assert [kernel_name(s, 128, 256, "cpu") for s in (None, int4, int8, fp8)] == [
        "vLLM",
        "vqp W4A16",
        "vqp W8A8",
        "vqp W8A16",
    ]
    assert [kernel_name(s, 128, 256, "cuda") for s in (int4, int8, fp8)] == [
        "vLLM Marlin / Machete",
        "vLLM CUTLASS INT8 / Triton INT8",
        "vLLM CUTLASS FP8",
    ]
    monkeypatch.setenv("VQP_CUDA_KERNELS", "1")
    assert [kernel_name(s, 128, 256, "cuda") for s in (int4, int8, fp8)] == ["vqp W4A16", "vqp W8A8", "vqp W8A8"]
    monkeypatch.setenv("VQP_CUDA_FP8", "w8a16")
    assert kernel_name(fp8, 128, 256, "cuda") == "vqp W8A16"
    assert kernel_name(StoredScheme(E5M2, 0, storage=Storage("fp8")), 128, 256, "cuda") == "dequantize"


def test_online_transforms_are_listed(tmp_path: Path) -> None:
    """And change who serves the checkpoint."""
    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
    rotation = {"type": "hadamard", "apply": [{"targets": ["re:.*down_proj$"], "location": "input"}]}
    config = {
        "quant_method": "compressed-tensors", "format": "int-quantized", "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "transform_config": {"config_groups": {"R4": rotation}},
    }  # fmt: skip
    tensors = {
        "model.layers.0.mlp.down_proj.weight": torch.zeros(64, 128, dtype=torch.int8),
        "model.layers.0.mlp.down_proj.weight_scale": torch.ones(64, 1),
        "model.layers.0.mlp.down_proj.R4_input.weight": torch.ones(128, 128),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": config}))
    found = as_dict(inspect_checkpoint(read_checkpoint(tmp_path), Host("cpu")))
    assert found["transforms"] == ["R4 (hadamard) at input of re:.*down_proj$"]
    assert found["plugin_method"] == "vqp_int8"
    assert "R4 (hadamard) at input on a CPU" in found["in_tree_rejects"]
