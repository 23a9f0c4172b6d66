"""A small model in the formats that conversions start from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.quantize.conftest import short_text, small_model
from vllm_quant_plugin.checkpoint import read_checkpoint
from vllm_quant_plugin.convert.api import stored_scheme
from vllm_quant_plugin.formats import get_format, parse_quantization_config
from vllm_quant_plugin.inspect import module_shape
from vllm_quant_plugin.quantize.io.shards import read_tensor

__all__ = ["short_text", "small_model"]


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


RECIPES = {
    "awq": ("awq", {"level": "4bit-64g"}),
    "gptq": ("gptq", {"level": "4bit-64g", "act_order": False}),
    "gptq-actorder": ("gptq", {"level": "3bit-64g"}),
    "gptq-asym": ("gptq", {"level": "8bit-128g-asym", "act_order": False}),
    "rtn3": ("rtn", {"level": "3bit-64g"}),
    "rtn4": ("rtn", {"level": "4bit-32g-asym"}),
    "int8": ("int8", {}),
    "fp8": ("fp8", {"level": "tensor"}),
    "fp8-block": ("fp8", {"level": "block"}),
}


class Sources:
    """Quantized checkpoints by name, each made when first asked for."""

    def __init__(self, model: Path, text: str, folder: Path) -> None:
        self._model, self._text, self._folder = model, text, folder

    def __getitem__(self, name: str) -> Path:
        from vllm_quant_plugin.quantize.api import make_recipe, quantize_model

        folder, (method, options) = self._folder / name, RECIPES[name]
        if not folder.exists():
            data = {"samples": 1, "seq_len": 32, "calibration": self._text} if method in ("awq", "gptq") else {}
            quantize_model(self._model, folder, make_recipe(method, **options, **data))
        return folder


@pytest.fixture(scope="session")
def sources(small_model: Path, short_text: str, tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """See ``Sources``."""
    return Sources(small_model, short_text, tmp_path_factory.mktemp("sources"))
