"""Modules that the checkpoint keeps in 16 bits without a word in its config, through vLLM; headers from the Hub."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.engines import ask, engine
from tests.support.oracle import judge
from tests.support.quantized_checkpoints import write_checkpoint
from tests.support.recipes import Recipe, awq, fp8, gptq
from tests.support.tiny_models import tiny_model
from vllm_quant_plugin import compat
from vllm_quant_plugin.errors import CheckpointError
from vllm_quant_plugin.formats import parse_quantization_config
from vllm_quant_plugin.methods.config import config_class

MODEL = tiny_model("llama")
LEFT_OUT = (
    "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj", "model.layers.0.self_attn.v_proj",
    "model.layers.1.mlp.down_proj",
)  # fmt: skip
RECIPES: dict[str, tuple[str, Recipe]] = {
    "gptq": ("vqp_gptq", gptq(3, 64)),
    "awq": ("vqp_awq", awq(4, 128)),
    "fp8": ("vqp_fp8", fp8()),
}


def _undo(tensors: dict[str, torch.Tensor]) -> None:
    for name in LEFT_OUT:
        for tensor in [one for one in tensors if one.startswith(f"{name}.")]:
            del tensors[tensor]
        tensors[f"{name}.weight"] = MODEL.tensors[f"{name}.weight"]


@pytest.mark.engine
@pytest.mark.parametrize("name", RECIPES)
def test_layers_left_out_are_served_in_16_bits(name: str, tmp_path: Path) -> None:
    method, recipe = RECIPES[name]
    written = write_checkpoint(tmp_path, MODEL, recipe, damage=_undo)
    dense = written.dense | {f"{module}.weight": MODEL.tensors[f"{module}.weight"] for module in LEFT_OUT}
    from tests.support.quantized_checkpoints import write_folder

    reference = ask(write_folder(tmp_path / "dense", MODEL.config, dense))
    got = ask(written.folder, quantization=method)
    if recipe.scheme is not None and recipe.scheme.activation is None:
        assert got.tokens == reference.tokens
    assert judge(got, reference).clean == 1


@pytest.mark.engine
def test_weights_are_not_loaded_twice(tmp_path: Path) -> None:
    """vLLM would keep the old ones without a word: a packed layer has no place for a checkpoint's tensors."""
    written = write_checkpoint(tmp_path, MODEL, gptq(3, 64))
    with (
        engine(written.folder, quantization="vqp_gptq") as llm,
        pytest.raises(CheckpointError, match="cannot be loaded again"),
    ):
        llm.collective_rpc("reload_weights")


def test_headers_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {
        "model.layers.0.mlp.gate.weight": {"dtype": "BF16", "shape": [4, 64]},
        "model.layers.0.self_attn.q_proj.qweight": {"dtype": "I32", "shape": [8, 64]},
    }
    monkeypatch.setattr(compat, "hub_tensors", lambda model, revision: found)
    config = config_class("vqp_gptq")(parse_quantization_config({"quant_method": "gptq", "bits": 4, "group_size": 64}))
    config.maybe_update_config("org/name", revision="main")
    assert config.model.kept == {"model.layers.0.mlp.gate"}
    assert config.scheme_of("model.layers.0.self_attn.q_proj") is not None
    assert config.scheme_of("model.layers.0.mlp.gate") is None


def test_a_module_that_is_fused_in_the_checkpoint_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Glm4's gate_up_proj, which vLLM's model file says to be of gate_proj and up_proj."""
    found = {"model.layers.0.mlp.gate_up_proj.weight": {"dtype": "BF16", "shape": [128, 64]}}
    monkeypatch.setattr(compat, "hub_tensors", lambda model, revision: found)
    config = config_class("vqp_gptq")(parse_quantization_config({"quant_method": "gptq", "bits": 4, "group_size": 64}))
    config.packed_modules_mapping = {"gate_up_proj": ["gate_proj", "up_proj"]}
    config.maybe_update_config("org/name")
    assert config.scheme_of("model.layers.0.mlp.gate_up_proj") is None
    assert config.scheme_of("model.layers.1.mlp.gate_up_proj") is not None
