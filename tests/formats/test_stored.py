"""Modules that a checkpoint stores otherwise than its config says: seen in the headers, by every format alike."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.support.quantized_checkpoints import write_checkpoint
from tests.support.recipes import Recipe, awq, compressed_tensors, fp8, gptq
from tests.support.tiny_models import tiny_model
from vllm_quant_plugin.checkpoint import by_module, read_checkpoint
from vllm_quant_plugin.errors import CheckpointError
from vllm_quant_plugin.formats import Host, as_stored, parse_quantization_config
from vllm_quant_plugin.inspect import inspect_checkpoint
from vllm_quant_plugin.schemes import ModelScheme
from vllm_quant_serve.plan.model.load import load_model
from vllm_quant_serve.plan.request import PlanRequest

MODEL = tiny_model("llama")
LEFT_OUT = ("model.layers.0.self_attn.o_proj", "model.layers.1.mlp.down_proj")
RECIPES: dict[str, Recipe] = {
    "gptq": gptq(4, 128),
    "awq": awq(4, 128),
    "fp8": fp8(),
    "pack-quantized": compressed_tensors("pack-quantized", 128),
    "int-quantized": compressed_tensors("int-quantized"),
}


@dataclass(frozen=True)
class Header:
    dtype: str
    shape: tuple[int, ...]


def _undo(tensors: dict[str, torch.Tensor]) -> None:
    """Store the modules that were left out in 16 bits."""
    for name in LEFT_OUT:
        for tensor in [one for one in tensors if one.startswith(f"{name}.")]:
            del tensors[tensor]
        tensors[f"{name}.weight"] = MODEL.tensors[f"{name}.weight"]


@pytest.mark.parametrize("name", RECIPES)
def test_what_the_config_does_not_declare(name: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, MODEL, RECIPES[name], damage=_undo).folder
    checkpoint = read_checkpoint(folder)
    config = checkpoint.quantization_config
    assert config is not None
    declared = parse_quantization_config(config)
    model = as_stored(declared, checkpoint.modules())
    for module in MODEL.linears:
        assert declared.scheme_for(module) is not None
        assert (model.scheme_for(module) is None) == (module in LEFT_OUT), module
    assert model.undeclared == frozenset()
    inspected = {m.name for m in inspect_checkpoint(checkpoint, Host("cpu")).modules if m.scheme}
    planned = load_model(PlanRequest.of(str(folder))).scheme
    assert planned is not None
    assert inspected == {m for m in MODEL.linears if planned.scheme_for(m)} == set(MODEL.linears) - set(LEFT_OUT)


def test_names_with_leading_components_that_the_checkpoint_lacks() -> None:
    scheme = gptq(4, 128).scheme
    model = ModelScheme("gptq", scheme, kept=frozenset({"layers.0.mlp.gate", "model.layers.1.mlp.gate"}))
    assert model.scheme_for("model.layers.0.mlp.gate") is None
    assert model.scheme_for("model.layers.1.mlp.gate") is None
    assert model.scheme_for("model.layers.2.mlp.gate") == scheme
    assert model.scheme_for("model.layers.0.mlp.gate_proj") == scheme


def test_experts_in_one_tensor_are_in_16_bits() -> None:
    stem = "model.layers.0.mlp.experts"
    tensors = {f"{stem}.gate_up_proj": Header("BF16", (4, 64, 64)), f"{stem}.down_proj": Header("BF16", (4, 32, 64))}
    codes = {f"{stem}.gate_up_proj": Header("U8", (4, 64, 32)), f"{stem}.down_proj": Header("BF16", (4, 32, 64))}
    declared = parse_quantization_config({"quant_method": "gptq", "bits": 4, "group_size": 32})
    assert as_stored(declared, by_module(tensors)).kept == {stem}
    assert not as_stored(declared, by_module(codes)).kept
    granite = {"model.layers.0.block_sparse_moe.input_linear.weight": Header("BF16", (4, 64, 64))}
    assert "model.layers.0.block_sparse_moe.experts" in as_stored(declared, by_module(granite)).kept


@pytest.mark.parametrize(
    ("config", "headers"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128, "dynamic": {"-:.*gate$": {}}}, {"qweight": "I32"}),
        (
            {"quant_method": "fp8", "modules_to_not_convert": ["model.layers.0.mlp.gate"]},
            {"weight": "F8_E4M3", "weight_scale": "F32"},
        ),
    ],
    ids=["gptq", "fp8"],
)
def test_quantized_though_the_config_says_16_bits(config: dict[str, Any], headers: dict[str, str]) -> None:
    """Its scheme is not known: whoever loads it refuses it. What is not loaded (draft layers) is not refused."""
    name = "model.layers.0.mlp.gate"
    tensors = {f"{name}.{leaf}": Header(dtype, (64, 64)) for leaf, dtype in headers.items()}
    model = as_stored(parse_quantization_config(config), by_module(tensors))
    model.refuse_undeclared("model.layers.1.mlp.gate")
    with pytest.raises(CheckpointError, match=r"layers\.0\.mlp\.gate is quantized in the checkpoint, but"):
        model.refuse_undeclared(name)


def test_a_weight_in_8_bits_without_scales_is_no_contradiction(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.gate"
    save_file({f"{name}.weight": torch.zeros(4, 4).to(torch.float8_e4m3fn)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({}))
    config = {"quant_method": "fp8", "modules_to_not_convert": [name]}
    assert not as_stored(parse_quantization_config(config), read_checkpoint(tmp_path).modules()).undeclared
