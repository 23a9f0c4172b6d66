"""Transforms where vLLM's layers have no place for them are refused by name, never passed over."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest
import torch

from vllm_quant_plugin import compat_layers as layers
from vllm_quant_plugin.errors import CheckpointError
from vllm_quant_plugin.methods.config import config_class
from vllm_quant_plugin.methods.dispatch import method_for
from vllm_quant_plugin.methods.transformed import TransformedMethod
from vllm_quant_plugin.schemes import ModelScheme
from vllm_quant_plugin.transforms import Application, PartTransforms, Transform, refuse_unplaced

LAYER = "model.layers.0"
HADAMARD = Transform("R", "hadamard", 4)


def ask(kind: type, prefix: str, location: Any, target: str) -> Any:
    model = ModelScheme("compressed-tensors", None, transforms=(Application(HADAMARD, location, (target,)),))
    names = {"ckpt_gate_proj_name": "gate_proj", "ckpt_down_proj_name": "down_proj", "ckpt_up_proj_name": "up_proj"}
    return method_for(config_class("vqp_int8")(model), Mock(spec=kind, **names), prefix)


@pytest.mark.parametrize(
    ("kind", "prefix", "location", "target", "message"),
    [
        (layers.Attention, f"{LAYER}.self_attn.attn", "input", "re:.*self_attn", "hidden states"),
        (layers.LinearBase, f"{LAYER}.self_attn.q_proj", "q_attn", "Linear", "outside the attention"),
        (layers.AttentionLayerBase, f"{LAYER}.self_attn.attn", "q_attn", "re:.*self_attn$", "latent attention"),
        (layers.ParallelLMHead, "lm_head", "output", "lm_head", "the logits"),
        (layers.VocabParallelEmbedding, "model.embed_tokens", "input", "Embedding", "token ids"),
        (layers.RoutedExperts, f"{LAYER}.mlp.experts", "input", "re:.*down_proj$", "activations of experts"),
    ],
)
def test_refused(kind: type, prefix: str, location: str, target: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"transform_config: R \(hadamard 4\) at {location}: .*{message}"):
        ask(kind, prefix, location, target)


MODULES = {
    f"{LAYER}.input_layernorm": False, f"{LAYER}.self_attn.q_proj": True, f"{LAYER}.mlp.down_proj": True,
    "model.embed_tokens": True,
}  # fmt: skip


@pytest.mark.parametrize(
    ("location", "target", "message"),
    [
        ("input", "re:.*down_project$", "no module of the checkpoint is one of re:"),
        ("q_attn", "model.layers.1.self_attn", "no module of the checkpoint is one of model.layers.1.self_attn"),
        ("input", "LlamaMLP", "no module of the checkpoint is one of LlamaMLP"),
        ("output", "re:.*layernorm$", "model.layers.0.input_layernorm is no linear layer"),
        ("input", "re:.*mlp$", "model.layers.0.mlp is no linear layer"),
    ],
)
def test_a_transform_without_a_layer_is_refused(location: Any, target: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"transform_config: R \(hadamard 4\) at {location}: {message}"):
        refuse_unplaced([Application(HADAMARD, location, (target,))], MODULES)


@pytest.mark.parametrize(
    ("location", "target"),
    [("input", "re:.*down_proj$"), ("input", "Linear"), ("output", "model.embed_tokens"), ("output", "Embedding"),
     ("q_attn", "re:.*self_attn$"), ("k_cache", "LlamaAttention")],
)  # fmt: skip
def test_a_transform_with_a_layer_is_not(location: Any, target: str) -> None:
    refuse_unplaced([Application(HADAMARD, location, (target,))], MODULES)


def test_layers_without_a_match_are_as_before() -> None:
    found = ask(layers.LinearBase, f"{LAYER}.mlp.up_proj", "input", "re:.*down_proj$")
    assert not isinstance(found, TransformedMethod)


@pytest.mark.parametrize(("block", "refused"), [(None, True), (8, True), (4, False)])
def test_a_block_on_two_ranks_is_refused(block: int | None, refused: bool) -> None:
    """K = 8 over two ranks, 4 features each."""
    one = Application(Transform("R4", "hadamard", block), "input", ("re:.*down_proj$",))
    config = config_class("vqp_int8")(ModelScheme("compressed-tensors", None))
    method = TransformedMethod(Mock(), [PartTransforms("down_proj", (one,))], config.transform_tensors)
    layer = torch.nn.Module()
    layer.__class__ = type("Row", (layers.RowParallelLinear,), {"__init__": lambda self: None})
    layer.tp_rank, layer.tp_size, layer.skip_bias_add, layer.bias = 1, 2, False, None  # type: ignore[assignment]
    if not refused:
        method.create_weights(layer, 4, [6], 8, 6, torch.float32)
        return
    with pytest.raises(CheckpointError, match=r"R4 .* mixes blocks of 8 of 8 features") as error:
        method.create_weights(layer, 4, [6], 8, 6, torch.float32)
    assert "--tensor-parallel-size 1" in str(error.value.hint)
