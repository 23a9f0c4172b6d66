"""Every enumeration of every dialect: read as the writing library reads it, or refused by name.

The oracle of a field is the library that writes it, asked for the same value.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.formats.test_quant_config import AWQ, CT, FP8, GPTQ, MODULE, TOKEN, WEIGHTS, ct
from vllm_quant_kernels.scheme import E4M3, E5M2
from vllm_quant_plugin import formats
from vllm_quant_plugin.errors import CheckpointError
from vllm_quant_plugin.formats import (
    awq,
    bitsandbytes,
    fields,
    fp8,
    gptq,
    kv_cache,
    modelopt,
    parse_quantization_config,
)
from vllm_quant_plugin.formats.compressed_tensors import config as compressed
from vllm_quant_plugin.formats.fields import Enumeration
from vllm_quant_plugin.schemes import ModelScheme

GROUPS = {"num_bits": 4, "strategy": "group", "group_size": 64}
KV = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}
BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True}
MODELOPT = {"quant_method": "modelopt", "quantization": {"quant_algo": "FP8"}}


def scheme(model: ModelScheme) -> Any:
    found = model.scheme_for(MODULE)
    assert found is not None
    return found


# ------------------------------------------------------------------------------------------------ the oracles


def arguments(**more: Any) -> Any:
    from compressed_tensors.quantization import QuantizationArgs

    return QuantizationArgs.model_validate({**WEIGHTS, **more})


def ct_format(value: Any) -> Any:
    from compressed_tensors.config import CompressionFormat

    return CompressionFormat(value).value


def gptq_format(value: Any) -> Any:
    from gptqmodel.quantization.config import _normalize_format

    return _normalize_format(value).value


def pack_dtype(value: Any) -> Any:
    from gptqmodel.quantization.config import _normalize_pack_dtype

    return str(_normalize_pack_dtype(value)).removeprefix("torch.")


def awq_version(value: Any) -> Any:
    from transformers import AwqConfig

    return AwqConfig(version=value).format


def fine_grained(name: str) -> Callable[[Any], Any]:
    def ask(value: Any) -> Any:
        from transformers import FineGrainedFP8Config

        return getattr(FineGrainedFP8Config(**{name: value}), name)

    return ask


def fp8_type(value: Any) -> Any:
    from gptqmodel.quantization.config import _normalize_fp8_fmt

    return {"float8_e4m3fn": "e4m3", "float8_e5m2": "e5m2"}[_normalize_fp8_fmt(value)]


def kv_type(value: Any) -> Any:
    found = arguments(**{**KV, "type": value}).type
    if found != "float":
        raise ValueError(found)
    return found


def code_table(value: Any) -> Any:
    if value not in ("fp4", "nf4"):  # transformers compares the strings themselves
        raise ValueError(value)
    return value


def algorithm(value: Any) -> Any:
    from vllm.model_executor.layers.quantization.modelopt import QUANT_ALGOS

    if not isinstance(value, str) or (value.upper() not in QUANT_ALGOS and value.upper() != "NVFP4_AWQ"):
        raise ValueError(value)
    return {"FP8": "fp8"}.get(value.upper(), "nvfp4" if "NVFP4" in value.upper() else None)


def cache_algorithm(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError(value)
    return {"FP8": "fp8"}.get(value.upper())


# ------------------------------------------------------------------------------------------------- the fields


@dataclass(frozen=True)
class Case:
    """One field.

    Attributes:
        enumeration: how the plugin reads it.
        config: a quantization_config with the field at a value.
        read: what the plugin understood.
        oracle: what the writing library understands; raises for what it does not accept. None: known, of another kind.
        ours: spellings that another library writes.
    """

    enumeration: Enumeration
    config: Callable[[Any], dict[str, Any]]
    read: Callable[[ModelScheme], Any]
    oracle: Callable[[Any], Any]
    ours: tuple[str, ...] = ()


def packed(value: Any) -> dict[str, Any]:
    return ct("pack-quantized", None, **GROUPS, actorder=value)


def weight_strategy(value: Any) -> dict[str, Any]:
    found = str(value).lower()
    more = {"group": {"group_size": 64}, "block": {"block_structure": [64, 64]}}.get(found, {})
    return ct("int-quantized", None, strategy=value, **more)


def weight_strategy_oracle(value: Any) -> Any:
    return arguments(**weight_strategy(value)["config_groups"]["group_0"]["weights"]).strategy


def activation(**more: Any) -> dict[str, Any]:
    size = {"group_size": 64} if str(more.get("strategy")).lower() == "group" else {}
    return ct(activations={**TOKEN, **size, **more})


def strategy_of(model: ModelScheme) -> str:
    found = scheme(model)
    return "block" if found.block else {-1: "channel", 0: "tensor"}.get(found.group_size, "group")


CASES = {
    "gptq.checkpoint_format": Case(
        gptq.LAYOUT, lambda v: {**GPTQ, "checkpoint_format": v},
        lambda m: "gptq" if scheme(m).storage["zero_offset"] else "gptq_v2", gptq_format),
    "gptq.format": Case(
        gptq.LAYOUT, lambda v: {**GPTQ, "format": v},
        lambda m: "gptq" if scheme(m).storage["zero_offset"] else "gptq_v2", gptq_format),
    "gptq.pack_dtype": Case(fields.PACK_DTYPE, lambda v: {**GPTQ, "pack_dtype": v}, lambda m: "int32", pack_dtype),
    "awq.version": Case(
        awq.LAYOUT, lambda v: {**AWQ, "version": v}, lambda m: "gemm", awq_version, ours=("awq",)),
    "awq.pack_dtype": Case(fields.PACK_DTYPE, lambda v: {**AWQ, "pack_dtype": v}, lambda m: "int32", pack_dtype),
    "fp8.activation_scheme": Case(
        fp8.ACTIVATION_SCHEME, lambda v: {**FP8, "activation_scheme": v},
        lambda m: "dynamic" if scheme(m).activation.dynamic else "static", fine_grained("activation_scheme")),
    "fp8.scale_fmt": Case(fp8.SCALE_FORMAT, lambda v: {**FP8, "scale_fmt": v}, lambda m: None,
                          fine_grained("scale_fmt")),
    "fp8.fmt": Case(
        fp8.FLOAT_TYPE, lambda v: {**FP8, "fmt": v}, lambda m: {E4M3: "e4m3", E5M2: "e5m2"}[scheme(m).value], fp8_type,
        ours=("e4m3", "e5m2", "e4m3fn")),
    "ct.weights.type": Case(
        compressed.TYPE, lambda v: ct("naive-quantized", None, type=v),
        lambda m: "int" if scheme(m).is_int else "float", lambda v: arguments(type=v).type),
    "ct.weights.strategy": Case(compressed.WEIGHT_STRATEGY, weight_strategy, strategy_of, weight_strategy_oracle),
    "ct.weights.actorder": Case(
        compressed.ACTORDER, packed, lambda m: "group" if scheme(m).act_order else "natural",
        lambda v: "group" if arguments(**GROUPS, actorder=v).actorder in ("group", "dynamic") else "natural"),
    "ct.input_activations.type": Case(
        compressed.TYPE, lambda v: activation(type=v),
        lambda m: "float" if scheme(m).activation.value == E4M3 else "int", lambda v: arguments(type=v).type),
    "ct.input_activations.strategy": Case(
        compressed.ACTIVATION_STRATEGY, lambda v: activation(strategy=v), lambda m: scheme(m).activation.strategy,
        lambda v: arguments(**activation(strategy=v)["config_groups"]["group_0"]["input_activations"]).strategy),
    "ct.input_activations.dynamic": Case(
        compressed.DYNAMIC, lambda v: activation(strategy="tensor", dynamic=v),
        lambda m: scheme(m).activation.dynamic,
        lambda v: arguments(**{**TOKEN, "strategy": "tensor", "dynamic": v}).dynamic),
    "ct.format": Case(
        compressed.LAYOUT, lambda v: {**ct("x", None), "format": v}, lambda m: None, ct_format),
    "ct.group.format": Case(
        compressed.LAYOUT,
        lambda v: {**CT, "format": "int-quantized",
                   "config_groups": {"g": {"targets": ["Linear"], "weights": WEIGHTS, "format": v}}},
        lambda m: None, ct_format),
    "kv_cache_scheme.type": Case(
        kv_cache.TYPE, lambda v: {**CT, "kv_cache_scheme": {**KV, "type": v}}, lambda m: "float", kv_type),
    "kv_cache_scheme.strategy": Case(
        kv_cache.STRATEGY, lambda v: {**CT, "kv_cache_scheme": {**KV, "strategy": v}}, lambda m: None,
        lambda v: arguments(strategy=v) and None),
    "bitsandbytes.bnb_4bit_quant_type": Case(
        bitsandbytes.CODE_TABLE, lambda v: {**BNB, "bnb_4bit_quant_type": v},
        lambda m: m.default.value.table if m.default else None, code_table),
    "modelopt.quant_algo": Case(
        modelopt.ALGORITHM, lambda v: {**MODELOPT, "quantization": {"quant_algo": v}},
        lambda m: "fp8" if m.default and m.default.value == E4M3 else "nvfp4", algorithm),
    "modelopt.kv_cache_quant_algo": Case(
        modelopt.KV_CACHE, lambda v: {**MODELOPT, "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": v}},
        lambda m: m.kv_cache, cache_algorithm),
}  # fmt: skip


def values(case: Case) -> list[Any]:
    """Every spelling in every case, and what is none."""
    words = [key for key in case.enumeration.meanings if isinstance(key, str)]
    spelled = [form for word in words for form in (word, word.upper(), word.title(), f" {word}")]
    return [*dict.fromkeys([*spelled, "sideways", "none", "null", "true", "False", "local", "LOCAL"]), True, False, 2]


def understood(ask: Callable[[], Any]) -> tuple[bool, Any]:
    try:
        return True, ask()
    except CheckpointError:
        raise
    except Exception:
        return False, None


def attempt(config: dict[str, Any]) -> tuple[ModelScheme | None, str]:
    """The schemes, or the message of the refusal in lower case."""
    try:
        return parse_quantization_config(config), ""
    except CheckpointError as error:
        return None, error.message.lower()


@pytest.mark.parametrize("name", CASES)
def test_every_value_of_every_enumeration(name: str) -> None:
    case, field = CASES[name], name.rpartition(".")[2]
    for value in values(case):
        known, meaning = understood(lambda value=value: case.oracle(value))
        known = known or (isinstance(value, str) and value.lower() in case.ours)
        model, told = attempt(case.config(value))
        if model is None:
            assert repr(value).lower() in told or str(value).lower() in told, (value, told)
            assert field.rpartition("_")[2] in told or "layout" in told, (value, told)
            # What the library accepts and this plugin reads is not refused.
            assert case.enumeration.meaning(value) is None or not known, value
            continue
        assert known, f"{name} {value!r} is accepted here and not by the library that writes it"
        read = case.read(model)
        assert meaning is None or read is None or read == meaning, (value, read, meaning)


@pytest.mark.parametrize("name", CASES)
def test_null_and_a_missing_field_are_the_same(name: str) -> None:
    if name in ("modelopt.quant_algo", "kv_cache_scheme.type"):
        pytest.skip("it has no default that can be read")
    config = CASES[name].config(None)
    assert parse_quantization_config(config) is not None


def test_no_enumeration_is_left_out() -> None:
    found = {}
    for info in pkgutil.walk_packages(formats.__path__, f"{formats.__name__}."):
        module = importlib.import_module(info.name)
        found |= {id(v): f"{info.name}.{k}" for k, v in vars(module).items() if isinstance(v, Enumeration)}
    missing = set(found) - {id(case.enumeration) for case in CASES.values()}
    assert not missing, [found[one] for one in missing]


@pytest.mark.parametrize("key", ["desc_act", "sym", "lm_head"])
@pytest.mark.parametrize("word", ["true", "false", "False", "no", ""])
def test_a_string_is_no_boolean_of_gptq(key: str, word: str) -> None:
    """GPTQModel and vLLM keep it as it is, so that ``"false"`` would be true."""
    with pytest.raises(CheckpointError, match=f"{key} must be true or false"):
        parse_quantization_config({**GPTQ, key: word})


@pytest.mark.parametrize("word", ["true", "FALSE", "on", "no", "1", 1, 0, "maybe", 2])
def test_booleans_of_compressed_tensors_are_those_of_its_library(word: Any) -> None:
    known, meaning = understood(lambda: arguments(symmetric=word).symmetric)
    config = ct("pack-quantized", None, num_bits=4, symmetric=word)
    if known:
        assert scheme(parse_quantization_config(config)).symmetric is meaning
    else:
        with pytest.raises(CheckpointError, match="symmetric must be true or false"):
            parse_quantization_config(config)


def test_names_of_one_field_must_agree() -> None:
    with pytest.raises(CheckpointError, match="contradict"):
        parse_quantization_config({**GPTQ, "checkpoint_format": "gptq_v2", "format": "gptq"})
