"""Presets and flags become schemes; what cannot be is refused with a way out."""

from __future__ import annotations

from typing import Any

import pytest

from vllm_quant_plugin.errors import UsageError
from vllm_quant_plugin.formats import get_format, parse_quantization_config
from vllm_quant_plugin.quantize.algorithm import default_method
from vllm_quant_plugin.quantize.options import LEVEL_EXAMPLES
from vllm_quant_plugin.quantize.recipe import Recipe, make_recipe

LEVELS = [
    ("awq", None, "INT4 g128 asym", "awq"),
    ("awq", "4bit", "INT4 g128 asym", "awq"),
    ("awq", "4bit-64g", "INT4 g64 asym", "awq"),
    ("awq", "4bit-128g", "INT4 g128 asym", "awq"),
    ("awq", "3bit", "INT3 g128 asym", "pack-quantized"),
    ("awq", "4bit-sym", "INT4 g128 sym", "pack-quantized"),
    ("gptq", None, "INT4 g128 sym act-order", "gptq"),
    ("gptq", "4bit-actorder", "INT4 g128 sym act-order", "gptq"),
    ("gptq", "3bit", "INT3 g128 sym act-order", "gptq"),
    ("gptq", "8bit", "INT8 g128 sym act-order", "gptq"),
    ("gptq", "2bit-32g-asym", "INT2 g32 asym act-order", "gptq"),
    ("gptq", "W4A16", "INT4 g128 sym act-order", "gptq"),
    ("int8", None, "INT8 channel sym A8 dynamic token", "int-quantized"),
    ("int8", "W8A8", "INT8 channel sym A8 dynamic token", "int-quantized"),
    ("int8", "W8A16", "INT8 channel sym", "int-quantized"),
    ("fp8", None, "FP8 channel A8 dynamic token", "float-quantized"),
    ("fp8", "W8A8", "FP8 channel A8 dynamic token", "float-quantized"),
    ("fp8", "tensor", "FP8 tensor A8 dynamic token", "fp8"),
    ("fp8", "block", "FP8 block 128x128 A8 dynamic group", "fp8"),
    ("rtn", "3bit-64g", "INT3 g64 sym", "pack-quantized"),
]


@pytest.mark.parametrize(("method", "level", "scheme", "storage"), LEVELS)
def test_level(method: str, level: str | None, scheme: str, storage: str) -> None:
    recipe = make_recipe(method, level=level)
    assert (recipe.scheme.describe(), recipe.scheme.storage.label) == (scheme, storage)


@pytest.mark.parametrize(
    ("level", "method"),
    [
        (None, "awq"),
        *((level, "awq") for level in ("4bit", "4bit-64g", "4bit-128g", "3bit", "8bit", "W4A16", "W8A16")),
        ("4bit-actorder", "gptq"),
        ("W8A8", "int8"),
        *((level, "fp8") for level in ("channel", "tensor", "block")),
        # AWQ has no 5 bits.
        ("5bit", "rtn"),
    ],
)
def test_a_level_alone_is_a_recipe(level: str | None, method: str) -> None:
    assert default_method(level) == method
    assert make_recipe(default_method(level), level=level).method == method


def written_config(recipe: Recipe) -> dict[str, Any]:
    schemes = {"model.layers.0.mlp.up_proj": recipe.scheme}
    return get_format(recipe.scheme).write_config(schemes, recipe.scheme, ["lm_head"], kv_cache=recipe.kv_cache)


@pytest.mark.parametrize(("method", "level"), [(row[0], row[1]) for row in LEVELS])
def test_config_json_reads_back_as_the_scheme(method: str, level: str | None) -> None:
    recipe = make_recipe(method, level=level)
    model = parse_quantization_config(written_config(recipe))
    assert model.scheme_for("model.layers.0.mlp.up_proj") == recipe.scheme
    assert model.scheme_for("lm_head") is None


@pytest.mark.parametrize(("method", "level"), [(row[0], row[1]) for row in LEVELS])
def test_recipe_survives_json(method: str, level: str | None) -> None:
    recipe = make_recipe(method, level=level, seed=7)
    assert Recipe.from_json(recipe.to_json()) == recipe


EIGHT_BIT = [
    ("int8", {"activations": "static"}, "INT8 channel sym A8 static tensor", "int-quantized", "search"),
    ("int8", {"activations": "static", "smooth": "none"}, "INT8 channel sym A8 static tensor", "int-quantized", None),
    ("int8", {"smooth": "0.7"}, "INT8 channel sym A8 dynamic token", "int-quantized", 0.7),
    ("int8", {"smooth": "search"}, "INT8 channel sym A8 dynamic token", "int-quantized", "search"),
    ("fp8", {"activations": "static"}, "FP8 tensor A8 static tensor", "fp8", None),
    ("fp8", {"kv_cache": True}, "FP8 channel A8 dynamic token", "float-quantized", None),
    ("fp8", {"level": "tensor", "kv_cache": True}, "FP8 tensor A8 dynamic token", "float-quantized", None),
    ("fp8", {"level": "block", "kv_cache": True}, "FP8 block 128x128 A8 dynamic group", "float-quantized", None),
    ("awq", {"kv_cache": True}, "INT4 g128 asym", "pack-quantized", None),
    ("rtn", {"kv_cache": True}, "INT4 g128 sym", "pack-quantized", None),
]


@pytest.mark.parametrize(("method", "options", "scheme", "storage", "smooth"), EIGHT_BIT)
def test_measured_scales(method: str, options: dict, scheme: str, storage: str, smooth: object) -> None:
    recipe = make_recipe(method, **options)
    assert (recipe.scheme.describe(), recipe.scheme.storage.label, getattr(recipe.options, "smooth", None)) == (
        scheme,
        storage,
        smooth,
    )
    assert recipe.calibration is not None
    assert Recipe.from_json(recipe.to_json()) == recipe
    model = parse_quantization_config(written_config(recipe))
    assert model.scheme_for("model.layers.0.mlp.up_proj") == recipe.scheme
    assert model.kv_cache == ("fp8" if recipe.kv_cache else None)


def test_explicit_values_win_over_the_level() -> None:
    recipe = make_recipe("gptq", level="4bit-64g", bits=3, act_order=False)
    assert (recipe.scheme.bits, recipe.scheme.group_size, recipe.scheme.act_order) == (3, 64, False)


@pytest.mark.parametrize(
    ("method", "options", "named"),
    [
        ("nf4", {}, "nf4"),
        ("awq", {"bits": 1}, "1 bits"),
        ("gptq", {"bits": 9}, "9 bits"),
        ("gptq", {"bits": 5}, "5 bits"),
        ("fp8", {"bits": 4}, "4 bits"),
        ("gptq", {"group_size": 0}, "group size 0"),
        ("gptq", {"group_size": -7}, "group size -7"),
        ("awq", {"act_order": True}, "act-order"),
        ("awq", {"level": "huge"}, "huge"),
        ("awq", {"level": "W4A8"}, "weights only"),
        ("int8", {"group_size": 64}, "per channel"),
        ("int8", {"calibration": "x.txt"}, "no calibration"),
        ("gptq", {"backend": "autoawq"}, "autoawq"),
        ("awq", {"backend": "autoawq", "bits": 3}, "4-bit"),
        ("gptq", {"seq_len": 2}, "8 tokens"),
        ("gptq", {"damp": 2.0}, "damp"),
        ("gptq", {"kv_cache": True}, "KV-cache"),
        ("awq", {"activations": "static"}, "no static activations"),
        ("fp8", {"level": "block", "activations": "static"}, "no static activations"),
        ("int8", {"level": "W8A16", "activations": "dynamic"}, "leaves activations alone"),
        ("int8", {"activations": "sometimes"}, "sometimes"),
        ("int8", {"smooth": "2"}, "'2'"),
        ("int8", {"smooth": "much"}, "much"),
        ("fp8", {"smooth": "0.5"}, "fp8 has no --smooth"),
        ("int8", {"level": "W8A16", "smooth": "0.5"}, "nothing to smooth"),
    ],
)
def test_impossible_recipes_are_refused(method: str, options: dict, named: str) -> None:
    with pytest.raises(UsageError, match=named) as caught:
        make_recipe(method, **options)
    assert caught.value.hint


@pytest.mark.parametrize("level", LEVEL_EXAMPLES.split(", "))
def test_every_level_that_is_listed_is_accepted_alone(level: str) -> None:
    assert make_recipe(default_method(level), level=level).scheme.bits <= 8


def test_names_in_another_case_and_slips_of_the_keyboard() -> None:
    assert make_recipe("AWQ") == make_recipe("awq")
    with pytest.raises(UsageError, match="did you mean gptq"):
        make_recipe("gtpq")
    with pytest.raises(UsageError, match=r"did you mean w8a8\?"):
        make_recipe("int8", level="w8a9x")
    with pytest.raises(UsageError, match="leave -m out"):
        make_recipe("awq", level="block")
