"""``quantization_config`` in every dialect: the schemes it means, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.matrix import CELLS, Cell
from tests.support.tiny_models import tiny_model
from vllm_quant_plugin.errors import CheckpointError
from vllm_quant_plugin.quant_config import parse_quantization_config
from vllm_quant_plugin.scheme import PER_CHANNEL, PER_TENSOR, ActivationScheme, Scheme

STORED = [cell for cell in CELLS if cell.recipe.config is not None and not cell.refused]


@pytest.mark.parametrize("cell", STORED, ids=lambda cell: cell.name)
def test_every_module_gets_what_was_written(cell: Cell) -> None:
    """The scheme parsed for each module of a cell's model is the one its recipe states, independently, and stores."""
    model = parse_quantization_config(cell.recipe.config or {})
    for name in tiny_model(cell.architecture).linears:
        assert model.scheme_for(name) == cell.recipe.scheme_of(name), name
    assert model.scheme_for("lm_head") == cell.recipe.lm_head


AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
WEIGHTS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
TOKEN = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
CT = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": WEIGHTS, "input_activations": TOKEN}},
    "ignore": ["lm_head"],
}


def ct(layout: str = "int-quantized", activations: Any = TOKEN, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": {**WEIGHTS, **weights}, "input_activations": activations}
    return {**CT, "format": layout, "config_groups": {"group_0": group}}


MODULE = "model.layers.3.mlp.down_proj"
INT8_TOKEN = ActivationScheme("int")
FP8_TOKEN = ActivationScheme("fp8_e4m3")
FP8_GROUP = ActivationScheme("fp8_e4m3", strategy="group", group_size=128)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (AWQ, Scheme("awq", symmetric=False)),
        ({**AWQ, "zero_point": False}, Scheme("awq")),
        ({"quant_method": "AWQ", "w_bit": 8, "q_group_size": 64},
         Scheme("awq", bits=8, group_size=64, symmetric=False)),
        ({**AWQ, "modules_to_not_convert": ["down_proj"]}, None),
        ({**AWQ, "modules_to_not_convert": ["up_proj"]}, Scheme("awq", symmetric=False)),
        (GPTQ, Scheme("gptq", zero_offset=1)),
        ({**GPTQ, "checkpoint_format": "gptq_v2"}, Scheme("gptq")),
        ({**GPTQ, "desc_act": True, "sym": False}, Scheme("gptq", symmetric=False, act_order=True, zero_offset=1)),
        ({**GPTQ, "dynamic": {r"-:.*down_proj": {}}}, None),
        ({**GPTQ, "dynamic": {r"-:.*\.1\..*": {}}}, Scheme("gptq", zero_offset=1)),
        ({**GPTQ, "dynamic": {r".*down": {"bits": 8, "group_size": 32}}},
         Scheme("gptq", bits=8, group_size=32, zero_offset=1)),
        ({**GPTQ, "dynamic": {r"+:.*down": {"desc_act": True}}}, Scheme("gptq", act_order=True, zero_offset=1)),
        ({**GPTQ, "dynamic": {r"down_proj": {"bits": 8}}}, Scheme("gptq", zero_offset=1)),
        ({**GPTQ, "dynamic": {r"-:.*down_proj": {}, r"+:.*": {"bits": 8}}}, None),
        ({**GPTQ, "modules_in_block_to_quantize": [["self_attn.q_proj"]]}, None),
        ({**GPTQ, "modules_in_block_to_quantize": [["mlp.up_proj"], ["mlp.down_proj"]]}, Scheme("gptq", zero_offset=1)),
        (FP8, Scheme("fp8", "fp8_e4m3", 8, PER_TENSOR, activation=FP8_TOKEN)),
        ({**FP8, "weight_block_size": [128, 128]},
         Scheme("fp8", "fp8_e4m3", 8, 128, block=(128, 128), activation=FP8_GROUP)),
        ({**FP8, "ignored_layers": [MODULE]}, None),
        ({**FP8, "ignored_layers": ["mlp"]}, None),
        ({**FP8, "modules_to_not_convert": ["mlp.down"]},
         Scheme("fp8", "fp8_e4m3", 8, PER_TENSOR, activation=FP8_TOKEN)),
        (CT, Scheme("int-quantized", bits=8, group_size=PER_CHANNEL, activation=INT8_TOKEN)),
        (ct(activations=None), Scheme("int-quantized", bits=8, group_size=PER_CHANNEL)),
        (ct("naive-quantized"), Scheme("int-quantized", bits=8, group_size=PER_CHANNEL, activation=INT8_TOKEN)),
        (ct("float-quantized", None, type="float", strategy="tensor"),
         Scheme("float-quantized", "fp8_e4m3", 8, PER_TENSOR)),
        (ct("pack-quantized", None, num_bits=3, strategy="group", group_size=64, symmetric=False),
         Scheme("pack-quantized", bits=3, group_size=64, symmetric=False)),
        (ct("pack-quantized", None, num_bits=4, strategy="group", group_size=64, actorder="group"),
         Scheme("pack-quantized", bits=4, group_size=64, act_order=True)),
        ({**CT, "ignore": [MODULE]}, None),
        ({**CT, "ignore": ["re:.*down_proj"]}, None),
    ],
)  # fmt: skip
def test_scheme_of_a_module(config: dict[str, Any], expected: Scheme | None) -> None:
    assert parse_quantization_config(config).scheme_for(MODULE) == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "quant_method 'missing' is not one"),
        ({"quant_method": "squeezellm"}, "quant_method 'squeezellm' is not one"),
        ({**AWQ, "bits": 3}, "AWQ with 3 bits"),
        ({**AWQ, "bits": 1}, "AWQ with 1 bits"),
        ({**AWQ, "version": "gemv"}, "AWQ layout 'gemv'"),
        ({**AWQ, "group_size": 0}, "group_size 0 is impossible"),
        ({**GPTQ, "bits": 1}, "GPTQ with 1 bits"),
        ({**GPTQ, "bits": 9}, "GPTQ with 9 bits"),
        ({**GPTQ, "bits": True}, "bits must be an integer"),
        ({**GPTQ, "bits": "4"}, "bits must be an integer"),
        ({k: v for k, v in GPTQ.items() if k != "bits"}, "has no 'bits'"),
        ({**GPTQ, "group_size": -2}, "group_size -2 is impossible"),
        ({**GPTQ, "checkpoint_format": "marlin"}, "GPTQ layout 'marlin'"),
        ({**GPTQ, "pack_dtype": "int64"}, "pack_dtype 'int64'"),
        ({**GPTQ, "dynamic": {"+:.*": {"bits": 5}}}, "GPTQ with 5 bits"),
        ({**GPTQ, "dynamic": {"+:.*": {"group_size": 0}}}, "group_size 0"),
        ({**FP8, "weight_block_size": [128]}, "weight_block_size"),
        ({**FP8, "weight_block_size": [128, 0]}, "weight_block_size"),
        (ct(num_bits=9), "9 bits is not supported"),
        (ct("float-quantized", None, type="float", num_bits=4), "4 bits is not supported"),
        (ct("marlin-24"), "format 'marlin-24'"),
        (ct(activations={**TOKEN, "num_bits": 4}), "activations of 4 bits"),
        (ct(strategy="attn_head"), "weight strategy 'attn_head'"),
        ({**CT, "config_groups": {}}, "without config_groups"),
    ],
)
def test_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as error:
        parse_quantization_config(config)
    assert error.value.hint


def test_compressed_tensors_targets_are_tried_before_classes() -> None:
    down = {"targets": ["re:.*down_proj"], "weights": {**WEIGHTS, "strategy": "group", "group_size": 64}}
    rest = {"targets": ["Linear"], "weights": WEIGHTS}
    model = parse_quantization_config({**CT, "config_groups": {"group_0": rest, "group_1": down}})
    assert model.scheme_for(MODULE) == Scheme("int-quantized", bits=8, group_size=64)
    assert model.scheme_for("model.layers.0.mlp.up_proj") == Scheme("int-quantized", bits=8, group_size=PER_CHANNEL)
    assert model.scheme_for("lm_head") is None


def test_lm_head() -> None:
    assert parse_quantization_config(GPTQ).scheme_for("lm_head") is None
    assert parse_quantization_config({**GPTQ, "lm_head": True}).scheme_for("lm_head") == Scheme("gptq", zero_offset=1)


def test_kv_cache() -> None:
    assert parse_quantization_config(CT).kv_cache is None
    assert parse_quantization_config({**CT, "kv_cache_scheme": {"num_bits": 8, "type": "float"}}).kv_cache == "fp8"


@pytest.mark.parametrize(
    "broken",
    [
        {**GPTQ, "dynamic": 3},
        {**GPTQ, "dynamic": {"x": 4}},
        {**AWQ, "modules_to_not_convert": 7},
        {**FP8, "weight_block_size": 128},
        {**CT, "config_groups": [1]},
        {**CT, "config_groups": {"group_0": "W8A8"}},
    ],
)
def test_malformed_fields_are_one_line(broken: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError) as caught:
        parse_quantization_config(broken)
    assert "\n" not in str(caught.value)
    assert caught.value.hint
