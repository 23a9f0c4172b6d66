"""Every width and option of AWQ and GPTQ in whole runs: stored where it should be, loads, and beats rounding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vllm_quant_plugin.checkpoint import read_checkpoint
from vllm_quant_plugin.formats import get_format, parse_quantization_config
from vllm_quant_plugin.quantize.api import make_recipe, quantize_model
from vllm_quant_plugin.quantize.io.shards import read_tensor
from vllm_quant_plugin.quantize.modules import linear_modules

RUNS = [
    ("awq", {"bits": 2, "group_size": 64}, "pack-quantized"),
    ("awq", {"bits": 3, "group_size": 64, "symmetric": True}, "pack-quantized"),
    ("awq", {"bits": 8}, "pack-quantized"),
    ("gptq", {"bits": 2, "group_size": 32, "symmetric": False}, "gptq"),
    ("gptq", {"bits": 4, "static_groups": True, "damp": 0.1}, "gptq"),
]


@pytest.mark.parametrize(("method", "options", "storage"), RUNS)
def test_run(small_model: Path, short_text: str, tmp_path: Path, method: str, options: dict, storage: str) -> None:
    data = {"samples": 2, "seq_len": 64, "calibration": short_text}
    recipe = make_recipe(method, **options, **data)
    report = quantize_model(small_model, tmp_path / "out", recipe)
    before, after = read_checkpoint(small_model), read_checkpoint(tmp_path / "out")
    model = parse_quantization_config(after.quantization_config)
    for module in linear_modules(before):
        scheme = model.scheme_for(module.name)
        assert scheme == recipe.scheme
        assert scheme.storage.label == storage
        names = [n for n in after.tensors if n.rpartition(".")[0] == module.name]
        tensors = {n.rpartition(".")[2]: read_tensor(after, n) for n in names}
        layout, shape = get_format(scheme), (module.out_features, module.in_features)
        layout.validate(module.name, tensors, scheme, *shape)
        weight = layout.unpack(tensors, scheme, *shape).validate()
        assert bool(torch.isfinite(weight.dequantize()).all())
    # Rounding to nearest on the same grid and the same text, whose errors come with its KV-cache scales.
    grid = {"bits": recipe.scheme.bits, "group_size": recipe.scheme.group_size, "symmetric": recipe.scheme.symmetric}
    plain = quantize_model(small_model, tmp_path / "rtn", make_recipe("rtn", kv_cache=True, **grid, **data))
    assert set(plain.errors) == set(report.errors)
    assert sum(report.errors.values()) < sum(plain.errors.values())
