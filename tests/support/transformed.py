"""Checkpoints with online transforms, and what they must answer.

The compressed-tensors library itself transforms a transformers model in float64: it multiplies the weights, and hooks
what runs on activations. Its weights and matrices are the checkpoint, its logits with the quantized weights the oracle.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.transform import TransformConfig, TransformFactory
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from tests.support.engines import PROMPTS, Answer
from tests.support.quantized_checkpoints import write_checkpoint
from tests.support.recipes import Recipe
from tests.support.tiny_models import TinyModel


def group(kind: str, *applied: Sequence[Any], **more: Any) -> dict[str, Any]:
    """A group of ``transform_config``: (location, inverse, targets...) of each application."""
    apply = [
        {"location": location, "inverse": inverse, "targets": list(targets), "ignore": []}
        for location, inverse, *targets in applied
    ]
    return {"type": kind, "apply": apply, "precision": "torch.float64", "requires_grad": False, **more}


@dataclass(frozen=True)
class Transformed:
    """A checkpoint and the float64 model that it stands for."""

    folder: Path
    model: Any

    def answer(self, tokens: list[list[int]]) -> Answer:
        """Logits after each token of ``PROMPTS`` continued by ``tokens``."""
        sequences = [[*prompt, *more[:-1]] for prompt, more in zip(PROMPTS, tokens, strict=True)]
        with torch.no_grad():
            logits = [self.model(torch.tensor([sequence])).logits[0].float() for sequence in sequences]
        return Answer(tokens, logits)


def transformed_model(model: TinyModel, groups: Mapping[str, Any]) -> Any:
    """``model`` in float64 with the library's transforms; matrices that are random are the same each time."""
    config = AutoConfig.for_model(**model.config, attn_implementation="sdpa")
    found = AutoModelForCausalLM.from_config(config).double().eval()
    found.load_state_dict({name: tensor.double() for name, tensor in model.tensors.items()}, strict=False)
    transforms = TransformConfig.model_validate({"config_groups": dict(groups)})
    for seed, (name, scheme) in enumerate(transforms.config_groups.items()):
        TransformFactory.from_scheme(scheme, name=name, seed=seed).apply_to_model(found, use_tqdm=False)
    return found


def write_transformed(
    folder: Path, model: TinyModel, groups: Mapping[str, Any], recipe: Recipe | None = None
) -> Transformed:
    """Write ``model``, transformed as ``groups`` say and then quantized by ``recipe`` (None: in 16 bits).

    Of a matrix that modules share one copy is stored, as ``save_pretrained`` does.
    """
    found = transformed_model(model, groups)
    state = {name: tensor.detach() for name, tensor in found.state_dict().items()}
    weights = {name: tensor.float() for name, tensor in state.items() if name in model.tensors}
    matrices = {tensor.data_ptr(): (name, tensor) for name, tensor in reversed(state.items()) if name not in weights}
    extra = {name: tensor.clone() for name, tensor in matrices.values() if not name.startswith("lm_head.weight")}
    rotated = TinyModel(model.config, weights, model.linears)
    quantization: dict[str, Any] = {"quant_method": "compressed-tensors", "format": "dense", "config_groups": {}}
    if recipe is None:
        target, dense = folder / "quantized", weights
        target.mkdir(parents=True)
    else:
        written = write_checkpoint(folder, rotated, recipe)
        target, dense, quantization = written.folder, written.dense, dict(recipe.config or {})
        weights = load_file(target / "model.safetensors")
    save_file(weights | extra, target / "model.safetensors")
    config = model.config | {"quantization_config": quantization | {"transform_config": {"config_groups": groups}}}
    (target / "config.json").write_text(json.dumps(config))
    found.load_state_dict({name: tensor.double() for name, tensor in dense.items()}, strict=False)
    return Transformed(target, found)
