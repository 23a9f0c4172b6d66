"""``quantization_config`` in every dialect: the schemes it means, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.matrix import CELLS, Cell
from tests.support.tiny_models import tiny_model
from vllm_quant_kernels.scheme import E4M3, PER_CHANNEL, PER_TENSOR, ActivationScheme, Int
from vllm_quant_plugin.errors import CheckpointError
from vllm_quant_plugin.formats import parse_quantization_config
from vllm_quant_plugin.formats.compressed_tensors import FLOAT_QUANTIZED, INT_QUANTIZED, PACK_QUANTIZED
from vllm_quant_plugin.formats.gptq import GPTQ_V1, GPTQ_V2
from vllm_quant_plugin.schemes import Storage, StoredScheme

STORED = [cell for cell in CELLS if cell.recipe.config is not None and not cell.refused]


@pytest.mark.parametrize("cell", STORED, ids=lambda cell: cell.name)
def test_every_module_gets_what_was_written(cell: Cell) -> None:
    """The scheme parsed for each module of a cell's model is the one its recipe states, independently, and stores."""
    model = parse_quantization_config(cell.recipe.config or {})
    for name in tiny_model(cell.architecture).linears:
        assert model.scheme_for(name) == cell.recipe.scheme_of(name), name
    # An fp8 config has no word for the LM head: its tensors decide.
    assert model.scheme_for("lm_head") == (None if model.method == "fp8" else cell.recipe.lm_head)


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
INT8_TOKEN = ActivationScheme(Int(8))
FP8_TOKEN = ActivationScheme(E4M3)
FP8_GROUP = ActivationScheme(E4M3, strategy="group", group_size=128)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (AWQ, StoredScheme(Int(4), symmetric=False, storage=Storage("awq"))),
        ({**AWQ, "zero_point": False}, StoredScheme(Int(4), storage=Storage("awq"))),
        ({"quant_method": "AWQ", "w_bit": 8, "q_group_size": 64},
         StoredScheme(Int(8), 64, symmetric=False, storage=Storage("awq"))),
        ({**AWQ, "modules_to_not_convert": ["down_proj"]}, None),
        ({**AWQ, "modules_to_not_convert": ["up_proj"]}, StoredScheme(Int(4), symmetric=False, storage=Storage("awq"))),
        (GPTQ, StoredScheme(Int(4), storage=GPTQ_V1)),
        ({**GPTQ, "checkpoint_format": "gptq_v2"}, StoredScheme(Int(4), storage=GPTQ_V2)),
        ({**GPTQ, "desc_act": True, "sym": False},
         StoredScheme(Int(4), symmetric=False, act_order=True, storage=GPTQ_V1)),
        ({**GPTQ, "dynamic": {r"-:.*down_proj": {}}}, None),
        ({**GPTQ, "dynamic": {r"-:.*\.1\..*": {}}}, StoredScheme(Int(4), storage=GPTQ_V1)),
        ({**GPTQ, "dynamic": {r".*down": {"bits": 8, "group_size": 32}}},
         StoredScheme(Int(8), 32, storage=GPTQ_V1)),
        ({**GPTQ, "dynamic": {r"+:.*down": {"desc_act": True}}}, StoredScheme(Int(4), act_order=True, storage=GPTQ_V1)),
        ({**GPTQ, "dynamic": {r"down_proj": {"bits": 8}}}, StoredScheme(Int(4), storage=GPTQ_V1)),
        ({**GPTQ, "dynamic": {r"-:.*down_proj": {}, r"+:.*": {"bits": 8}}}, None),
        ({**GPTQ, "modules_in_block_to_quantize": [["self_attn.q_proj"]]}, None),
        ({**GPTQ, "modules_in_block_to_quantize": [["mlp.up_proj"], ["mlp.down_proj"]]},
         StoredScheme(Int(4), storage=GPTQ_V1)),
        (FP8, StoredScheme(E4M3, PER_TENSOR, activation=FP8_TOKEN, storage=Storage("fp8"))),
        ({**FP8, "weight_block_size": [128, 128]},
         StoredScheme(E4M3, 128, block=(128, 128), activation=FP8_GROUP, storage=Storage("fp8"))),
        ({**FP8, "ignored_layers": [MODULE]}, None),
        ({**FP8, "ignored_layers": ["mlp"]}, None),
        ({**FP8, "modules_to_not_convert": ["mlp.down"]},
         StoredScheme(E4M3, PER_TENSOR, activation=FP8_TOKEN, storage=Storage("fp8"))),
        (CT, StoredScheme(Int(8), PER_CHANNEL, activation=INT8_TOKEN, storage=INT_QUANTIZED)),
        (ct(activations=None), StoredScheme(Int(8), PER_CHANNEL, storage=INT_QUANTIZED)),
        (ct("naive-quantized"), StoredScheme(Int(8), PER_CHANNEL, activation=INT8_TOKEN, storage=INT_QUANTIZED)),
        (ct("float-quantized", None, type="float", strategy="tensor"),
         StoredScheme(E4M3, PER_TENSOR, storage=FLOAT_QUANTIZED)),
        (ct("pack-quantized", None, num_bits=3, strategy="group", group_size=64, symmetric=False),
         StoredScheme(Int(3), 64, symmetric=False, storage=PACK_QUANTIZED)),
        (ct("pack-quantized", None, num_bits=4, strategy="group", group_size=64, actorder="group"),
         StoredScheme(Int(4), 64, act_order=True, storage=PACK_QUANTIZED)),
        ({**CT, "ignore": [MODULE]}, None),
        ({**CT, "ignore": ["re:.*down_proj"]}, None),
    ],
)  # fmt: skip
def test_scheme_of_a_module(config: dict[str, Any], expected: StoredScheme | None) -> None:
    assert parse_quantization_config(config).scheme_for(MODULE) == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "quant_method 'missing' is not one"),
        ({"quant_method": "squeezellm"}, "vLLM has no squeezellm method any more"),
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
        # What would change numbers without a word.
        ({**GPTQ, "invented": 3}, "quantization_config.invented is not known"),
        ({**AWQ, "invented": {"a": 1}}, "quantization_config.invented is not known"),
        ({**FP8, "invented": "x"}, "quantization_config.invented is not known"),
        ({**CT, "invented": 3}, "quantization_config.invented is not known"),
        (ct(invented=3), "weights.invented is not known"),
        (ct(activations={**TOKEN, "invented": 3}), "input_activations.invented is not known"),
        ({**GPTQ, "dynamic": {".*": {"invented": 3}}}, r"dynamic\['\.\*'\].invented is not known"),
        ({**GPTQ, "rotation": "hadamard"}, "rotation: rotations are not applied"),
        ({**GPTQ, "is_marlin_format": True}, "Marlin's own layout"),
        ({**GPTQ, "desc_act": "maybe"}, "desc_act must be true or false"),
        ({**AWQ, "rotation": "hadamard"}, "rotation: rotations are not applied"),
        ({**GPTQ, "activation": {"mode": "w4afp8"}}, "activation: quantized activations"),
        ({**FP8, "activation_scheme": "sometimes"}, "activation_scheme 'sometimes' is not supported"),
        ({**FP8, "fmt": "e3m4"}, "fmt 'e3m4' is not supported"),
        ({**CT, "sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config: format 'sparse-24-bitmask'"),
        (ct(actorder="sideways"), "actorder 'sideways' is not supported"),
        (ct(strategy="channel", group_size=64), "group_size 64 and strategy 'channel'"),
    ],
)
def test_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as error:
        parse_quantization_config(config)
    assert error.value.hint


@pytest.mark.parametrize(
    ("order", "expected"),
    [("group", True), ("GROUP", True), ("dynamic", True), ("Dynamic", True), (True, True), ("weight", False),
     ("static", False), ("Static", False), (False, False), (None, False)],
)  # fmt: skip
def test_every_spelling_of_actorder(order: Any, expected: bool) -> None:
    config = ct("pack-quantized", None, num_bits=4, strategy="group", group_size=64, actorder=order)
    found = parse_quantization_config(config).scheme_for(MODULE)
    assert found is not None
    assert found.act_order is expected


@pytest.mark.parametrize(
    ("weights", "group_size"), [({}, PER_TENSOR), ({"group_size": -1}, PER_CHANNEL), ({"group_size": 64}, 64)]
)
def test_a_missing_strategy_is_inferred_as_the_library_does(weights: dict[str, Any], group_size: int) -> None:
    config = ct("pack-quantized", None, num_bits=4, strategy=None, **weights)
    found = parse_quantization_config(config).scheme_for(MODULE)
    assert found is not None
    assert found.group_size == group_size


@pytest.mark.parametrize("structure", [[64, 128], "64x128"])
def test_block_structure(structure: Any) -> None:
    config = ct("float-quantized", None, type="float", strategy="block", block_structure=structure)
    found = parse_quantization_config(config).scheme_for(MODULE)
    assert found is not None
    assert (found.block, found.group_size) == ((64, 128), 128)


def test_what_libraries_add_is_harmless() -> None:
    """GPTQModel 5 writes the method twice; vLLM adds head counts before it hands the config on."""
    added = {"method": "gptq", "format": "gptq", "checkpoint_format": "gptq", "meta": {"foem": None}, "rotation": None}
    assert parse_quantization_config({**GPTQ, **added}) == parse_quantization_config(GPTQ)
    for config in (AWQ, GPTQ, FP8, CT):
        assert parse_quantization_config({**config, "total_num_heads": 8}) == parse_quantization_config(config)


def test_unused_keys_are_harmless() -> None:
    for value in (None, False, "", [], {}):
        for config in (AWQ, GPTQ, FP8, CT):
            assert parse_quantization_config({**config, "invented": value}) == parse_quantization_config(config)


def test_compressed_tensors_targets_are_tried_before_classes() -> None:
    down = {"targets": ["re:.*down_proj"], "weights": {**WEIGHTS, "strategy": "group", "group_size": 64}}
    rest = {"targets": ["Linear"], "weights": WEIGHTS}
    model = parse_quantization_config({**CT, "config_groups": {"group_0": rest, "group_1": down}})
    assert model.scheme_for(MODULE) == StoredScheme(Int(8), 64, storage=INT_QUANTIZED)
    assert model.scheme_for("model.layers.0.mlp.up_proj") == StoredScheme(Int(8), PER_CHANNEL, storage=INT_QUANTIZED)
    assert model.scheme_for("lm_head") is None


def test_lm_head() -> None:
    assert parse_quantization_config(GPTQ).scheme_for("lm_head") is None
    assert parse_quantization_config({**GPTQ, "lm_head": True}).scheme_for("lm_head") == StoredScheme(
        Int(4), storage=GPTQ_V1
    )


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
