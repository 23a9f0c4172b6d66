"""The tolerances of tests/support/oracle.py: wide enough for float32, far too narrow for the smallest mistake."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support.engines import PROMPTS, STEPS, Answer
from tests.support.matrix import CELLS
from tests.support.oracle import Oracle, input_ranges, judge
from tests.support.quantized_checkpoints import Written, write_checkpoint
from tests.support.reference_model import ReferenceModel
from tests.support.tiny_models import ARCHITECTURES, tiny_model

MODEL = tiny_model("llama")
TOKENS = [[(11 * i + n) % 256 for i in range(STEPS)] for n in range(len(PROMPTS))]
BY_NAME = {cell.name: cell for cell in CELLS}


def written(name: str, folder: Path) -> Written:
    return write_checkpoint(folder, MODEL, BY_NAME[name].recipe, input_ranges=input_ranges(MODEL))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_float32_is_clean(architecture: str) -> None:
    """A float32 evaluation is within the bound of the float64 one everywhere."""
    model = tiny_model(architecture)
    exact = ReferenceModel(model.config, model.tensors)
    single = ReferenceModel(model.config, model.tensors, torch.float32)
    prompts = [list(prompt) for prompt in PROMPTS]
    tokens = [[0] for _ in prompts]
    verdict = judge(
        Answer(tokens, [single.logits(prompt) for prompt in prompts]),
        Answer(tokens, [exact.logits(prompt).float() for prompt in prompts]),
    )
    assert verdict.clean == 1
    assert verdict.same_choice


@pytest.mark.parametrize("name", ["gptq-v2-4bit-g32-asym", "gptq-v1-8bit-g128-asym", "awq-4bit-g128"])
@pytest.mark.parametrize("part", ["self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"])
def test_tolerance_has_teeth(name: str, part: str, tmp_path: Path) -> None:
    """One zero point, off by one in one group of one output feature, is seen."""
    made = written(name, tmp_path)
    exact = Oracle(MODEL, made).answer(TOKENS)
    scheme = made.schemes[f"model.layers.0.{part}"]
    weight = f"model.layers.0.{part}.weight"
    damaged = made.dense[weight].clone()
    group = scheme.group_of(damaged.shape[1])
    row = damaged[5, :group]
    row += row.unique().diff().min()  # one step of the codes
    answer = Oracle(MODEL, replace(made, dense={**made.dense, weight: damaged})).answer(TOKENS)
    assert judge(answer, exact).clean < 1


@pytest.mark.parametrize("name", ["int8-w8a8-token", "int8-w8a8-static"])
def test_unrounded_activations_have_no_clean_position(name: str, tmp_path: Path) -> None:
    made = written(name, tmp_path)
    oracle = Oracle(MODEL, made)
    exact = oracle.answer(TOKENS)
    oracle.rounds = False
    assert judge(oracle.answer(TOKENS), exact).clean < 0.05
