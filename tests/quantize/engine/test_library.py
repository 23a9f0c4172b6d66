"""gptqmodel and autoawq as a whole, in their own process, behind the same call and the same output."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from vllm_quant_plugin.checkpoint import read_checkpoint
from vllm_quant_plugin.errors import BackendError
from vllm_quant_plugin.formats import get_format, parse_quantization_config
from vllm_quant_plugin.quantize.api import make_recipe, quantize_model
from vllm_quant_plugin.quantize.engine import library
from vllm_quant_plugin.quantize.modules import linear_modules


@pytest.mark.parametrize(("method", "backend"), [("gptq", "gptqmodel"), ("awq", "gptqmodel"), ("awq", "autoawq")])
def test_output_is_like_that_of_the_builtin_backend(
    small_model: Path, tmp_path: Path, method: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    seen: list[tuple[int, int]] = []
    recipe = make_recipe(method, level="4bit-64g", backend=backend, samples=4, seq_len=32)
    report = quantize_model(
        small_model, tmp_path / "out", recipe, progress=lambda what, done, total: seen.append((done, total))
    )
    assert seen[-1] == (2, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["here", "out"]
    assert not list((tmp_path / "here").iterdir())
    assert "/tmp" not in (tmp_path / "out" / "config.json").read_text()
    record = json.loads((tmp_path / "out" / "quantization.json").read_text())
    assert record["recipe"]["backend"] == backend
    before, after = read_checkpoint(small_model), read_checkpoint(tmp_path / "out")
    assert {t.file.name for t in after.tensors.values()} == {t.file.name for t in before.tensors.values()}
    model = parse_quantization_config(after.quantization_config)
    for module in linear_modules(before):
        scheme = model.scheme_for(module.name)
        assert scheme == recipe.scheme
        tensors = {}
        for name, info in after.tensors.items():
            if name.rpartition(".")[0] == module.name:
                with safe_open(info.file, "pt") as file:
                    tensors[name.rpartition(".")[2]] = file.get_tensor(name)
        layout, (n, k) = get_format(scheme), (module.out_features, module.in_features)
        layout.validate(module.name, tensors, scheme, n, k)
        weight = layout.unpack(tensors, scheme, n, k).validate().dequantize()
        assert bool(torch.isfinite(weight).all())
        assert float(weight.abs().max()) > 0
    assert report.peak_memory_bytes > 100_000_000


def test_a_library_that_fails_is_one_line(small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A sequence length of which the worker can make nothing.
    monkeypatch.setattr(library, "copy_result", lambda *_: pytest.fail("nothing to copy"))
    recipe = make_recipe("awq", backend="autoawq", samples=1, seq_len=8)
    monkeypatch.setattr(Path, "resolve", lambda self, strict=False: Path("/nowhere"))
    with pytest.raises(BackendError) as caught:
        library.quantize_with_library(
            read_checkpoint(small_model), [], recipe, [[1, 2]], tmp_path, None, lambda *_: None
        )
    assert "\n" not in caught.value.message
    assert "/nowhere" in caught.value.message
    assert not list(tmp_path.iterdir())
