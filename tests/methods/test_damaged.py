"""What only the loader can see: tensors that do not fit their config. One clear line out of the engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.support.engines import ask
from tests.support.quantized_checkpoints import write_checkpoint
from tests.support.recipes import Recipe, awq, fp8, gptq, gptq_scheme
from tests.support.tiny_models import tiny_model
from vllm_quant_plugin.errors import CheckpointError

pytestmark = pytest.mark.engine

MODEL = tiny_model("llama")
DOWN = "model.layers.1.mlp.down_proj"
Q = "model.layers.0.self_attn.q_proj"
Tensors = dict[str, torch.Tensor]


def _cut(name: str) -> Callable[[Tensors], None]:
    def damage(tensors: Tensors) -> None:
        tensors[name] = tensors[name][:-1].clone()

    return damage


def _drop(name: str) -> Callable[[Tensors], None]:
    def damage(tensors: Tensors) -> None:
        del tensors[name]

    return damage


def _set(name: str, index: int, value: int) -> Callable[[Tensors], None]:
    def damage(tensors: Tensors) -> None:
        tensors[name][index] = value

    return damage


AWQ, ACT_ORDER = awq(4, 128), gptq(4, 128, act_order=True)
ROWS: list[tuple[str, str, Recipe, Callable[[Tensors], None], str]] = [
    (
        "awq shape",
        "vqp_awq",
        awq(4, 128),
        _cut(f"{DOWN}.qweight"),
        r"down_proj\.qweight has shape \[511, 32\], expected",
    ),
    ("awq missing zeros", "vqp_awq", AWQ, _drop(f"{DOWN}.qzeros"), r"down_proj\.qzeros is missing"),
    ("awq missing fused part", "vqp_awq", AWQ, _drop(f"{Q}.scales"), r"qkv_proj\[q\]\.scales is missing"),
    (
        "gptq bad group",
        "vqp_gptq",
        gptq(4, 128, act_order=True),
        _set(f"{DOWN}.g_idx", 5, 99),
        "g_idx holds a group",
    ),
    ("fp8 missing scale", "vqp_fp8", fp8(), _drop(f"{DOWN}.weight_scale"), r"down_proj\.weight_scale is missing"),
]


@pytest.mark.parametrize(("what", "method", "recipe", "damage", "message"), ROWS, ids=[row[0] for row in ROWS])
def test_tensors_that_do_not_fit(
    what: str, method: str, recipe: Recipe, damage: Callable[[Tensors], None], message: str, tmp_path: Path
) -> None:
    written = write_checkpoint(tmp_path, MODEL, recipe, damage=damage)
    with pytest.raises(CheckpointError, match=message) as error:
        ask(written.folder, quantization=method)
    assert "\n" not in str(error.value)


def test_group_size_that_does_not_divide(tmp_path: Path) -> None:
    recipe = gptq(4, 128)
    written = write_checkpoint(tmp_path, MODEL, Recipe({**(recipe.config or {}), "group_size": 96}, recipe.scheme))
    with pytest.raises(CheckpointError, match="group_size 96 does not divide in_features 256"):
        ask(written.folder, quantization="vqp_gptq")


def test_fused_parts_that_differ(tmp_path: Path) -> None:
    recipe = gptq(4, 128, overrides=((r"k_proj", gptq_scheme(8, 128)),), dynamic={r"+:.*k_proj": {"bits": 8}})
    written = write_checkpoint(tmp_path, MODEL, recipe)
    with pytest.raises(CheckpointError, match=r"fuses into .*qkv_proj have different schemes"):
        ask(written.folder, quantization="vqp_gptq")


def test_awq_needs_a_quantized_checkpoint(tmp_path: Path) -> None:
    written = write_checkpoint(tmp_path, MODEL, Recipe(None, None))
    # vLLM looks for the files that may describe it beside config.json.
    with pytest.raises(ValueError, match="Cannot find the config file for vqp_awq"):
        ask(written.folder, quantization="vqp_awq")


def test_unknown_online_option(tmp_path: Path) -> None:
    written = write_checkpoint(tmp_path, MODEL, Recipe(None, None))
    options = {"quantization_config": {"quant_method": "vqp_int8", "groupsize": 64}}
    with pytest.raises(ValueError, match="unknown option 'groupsize'"):
        ask(written.folder, quantization="vqp_int8", hf_overrides=options)
