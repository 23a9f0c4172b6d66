"""A small model in the formats that conversions start from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.quantize.conftest import small_model
from vllm_quant_plugin.checkpoint import read_checkpoint
from vllm_quant_plugin.convert.api import stored_scheme
from vllm_quant_plugin.formats import get_format
from vllm_quant_plugin.inspect import module_shape
from vllm_quant_plugin.quant_config import parse_quantization_config
from vllm_quant_plugin.quantize.shards import read_tensor

__all__ = ["small_model"]


def dequantized(folder: Path) -> dict[str, torch.Tensor]:
    """float64 weights of every quantized module, as the plugin reads them."""
    checkpoint = read_checkpoint(folder)
    model = parse_quantization_config(checkpoint.quantization_config)
    found = {}
    for name, infos in checkpoint.modules():
        scheme = stored_scheme(name, infos, model)
        if scheme is None:
            continue
        tensors = {leaf: read_tensor(checkpoint, f"{name}.{leaf}") for leaf in infos}
        n, k = module_shape(infos, scheme)
        layout = get_format(scheme)
        layout.validate(name, tensors, scheme, n, k)
        found[name] = layout.unpack(tensors, scheme, n, k).validate().dequantize(torch.float64)
    return found


@pytest.fixture(scope="session")
def sources(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Quantized checkpoints by name."""
    from vllm_quant_plugin.quantize.api import make_recipe, quantize_model

    folder = tmp_path_factory.mktemp("sources")
    data = {"samples": 1, "seq_len": 32}
    recipes = {
        "awq": make_recipe("awq", level="4bit-64g", **data),
        "gptq": make_recipe("gptq", level="4bit-64g", act_order=False, **data),
        "gptq-actorder": make_recipe("gptq", level="3bit-64g", **data),
        "gptq-asym": make_recipe("gptq", level="8bit-128g-asym", act_order=False, **data),
        "rtn3": make_recipe("rtn", level="3bit-64g"),
        "rtn4": make_recipe("rtn", level="4bit-32g-asym"),
        "int8": make_recipe("int8"),
        "fp8": make_recipe("fp8", level="tensor"),
        "fp8-block": make_recipe("fp8", level="block"),
    }
    for name, recipe in recipes.items():
        quantize_model(small_model, folder / name, recipe)
    return {name: folder / name for name in recipes}
