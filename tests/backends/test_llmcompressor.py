"""Quantizing through llm-compressor: the protocol with a stand-in, and the real one where it is installed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from tests.support import fake_llmcompressor
from vllm_quant_plugin.backends import store
from vllm_quant_plugin.backends.process import Worker
from vllm_quant_plugin.checkpoint import read_checkpoint
from vllm_quant_plugin.cli import main
from vllm_quant_plugin.errors import BackendError, UsageError
from vllm_quant_plugin.formats import get_format, parse_quantization_config
from vllm_quant_plugin.quantize.api import make_recipe, preflight, quantize_model
from vllm_quant_plugin.quantize.engine import library
from vllm_quant_plugin.quantize.io.shards import ModelWriter, read_tensor
from vllm_quant_plugin.quantize.modules import check_schemes, linear_modules

DATA = {"backend": "llmcompressor", "samples": 4, "seq_len": 32}
RECIPES = [
    ("int8", {}),
    ("int8", {"smooth": 0.5}),
    ("int8", {"activations": "static"}),
    ("fp8", {}),
    ("fp8", {"activations": "static", "kv_cache": True}),
]
# Where the real one may be: the home of the user who runs the tests.
INSTALLED = store.find_backend("llmcompressor")


def check_output(source: Path, made: Path, recipe) -> None:
    """Every module loads through the format, near the original; all else is as it was but for smoothing."""
    before, after = read_checkpoint(source), read_checkpoint(made)
    model = parse_quantization_config(after.quantization_config)
    for module in linear_modules(before):
        scheme = model.scheme_for(module.name)
        assert scheme == recipe.scheme
        names = [n for n in after.tensors if n.rpartition(".")[0] == module.name]
        tensors = {n.rpartition(".")[2]: read_tensor(after, n) for n in names}
        layout, shape = get_format(scheme), (module.out_features, module.in_features)
        layout.validate(module.name, tensors, scheme, *shape)
        weight = layout.unpack(tensors, scheme, *shape).validate().dequantize()
        if getattr(recipe.options, "smooth", None) is None:
            original = read_tensor(before, f"{module.name}.weight").float()
            assert float((weight - original).norm() / original.norm()) < 0.05
        if not scheme.activation.dynamic:
            assert float(tensors["input_scale"]) > 0
    assert (model.kv_cache == "fp8") == recipe.kv_cache
    assert len([n for n in after.tensors if n.endswith((".k_scale", ".v_scale"))]) == (4 if recipe.kv_cache else 0)
    kept = "model.embed_tokens.weight"
    assert torch.equal(read_tensor(after, kept), read_tensor(before, kept))


@pytest.mark.parametrize(("method", "options"), [RECIPES[0], RECIPES[2], RECIPES[4]])
def test_protocol(small_model: Path, short_text: str, tmp_path: Path, fake: Path, method: str, options: dict) -> None:
    recipe = make_recipe(method, calibration=short_text, **options, **DATA)
    plan = preflight(small_model, tmp_path / "out", recipe)
    seen: list[tuple[int, int]] = []
    report = quantize_model(
        small_model, tmp_path / "out", recipe, progress=lambda what, done, total: seen.append((done, total))
    )
    check_output(small_model, tmp_path / "out", recipe)
    assert len(seen) == 14
    assert report.versions["llmcompressor"] == "0.0.fake"
    assert report.peak_memory_bytes >= 200_000_000
    assert report.bytes_after == plan.bytes_after
    assert sorted(p.name for p in tmp_path.iterdir()) == ["backends", "out"]
    assert str(tmp_path) not in (tmp_path / "out" / "config.json").read_text()


def test_a_library_that_dies_is_one_line(
    small_model: Path, tmp_path: Path, fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_MODE", "dies")
    with pytest.raises(BackendError, match="died as asked") as caught:
        quantize_model(small_model, tmp_path / "out", make_recipe("int8", **DATA))
    assert "\n" not in caught.value.message
    assert [p.name for p in tmp_path.iterdir()] == ["backends"]


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("nan", r"up_proj.weight_scale holds NaN"),
        ("missing", "up_proj.weight is missing"),
        ("config", "its config calls"),
        ("no-input-scale", "has no input_scale"),
    ],
)
def test_what_comes_back_is_checked(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, said: str
) -> None:
    """The worker's part in this process: the fake's files, the real check."""

    def run(_worker, job: Path, _log: Path, _progress) -> int:
        fake_llmcompressor.quantize(json.loads(job.read_text()), mode, lambda **_: None)
        return 0

    monkeypatch.setattr(library, "find_worker", lambda name, own_environment: Worker((), {}))
    monkeypatch.setattr(library, "run_worker", run)
    checkpoint = read_checkpoint(small_model)
    recipe = make_recipe("int8", activations="static", **DATA)
    modules = check_schemes(linear_modules(checkpoint), recipe.scheme_for)
    writer = ModelWriter(tmp_path, checkpoint)
    with pytest.raises(BackendError, match=said) as caught:
        library.quantize_with_library(checkpoint, modules, recipe, [[1, 2]], tmp_path, writer, lambda *_: None)
    assert caught.value.message.startswith("llmcompressor wrote no usable checkpoint: ")
    assert "\n" not in caught.value.message
    assert not (tmp_path / "library").exists()


def test_without_it_one_line_says_how_to_get_it(
    small_model: Path, tmp_path: Path, home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = ["-m", "int8", "--smooth", "0.8", "--backend", "llmcompressor"]
    with pytest.raises(SystemExit) as caught:
        main(["quantize", str(small_model), *flags, "-o", str(tmp_path / "out")])
    error = capfd.readouterr().err
    assert caught.value.code == 7
    assert error == "error: llmcompressor is not installed; run `vllm-quant backends install llmcompressor`\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("method", "options", "named"),
    [
        ("int8", {"smooth": "search"}, "one strength"),
        ("int8", {"level": "W8A16"}, "does not do"),
        ("fp8", {"level": "block"}, "does not do"),
        ("rtn", {}, "does not do rtn"),
    ],
)
def test_what_it_is_not_asked_for(method: str, options: dict, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        make_recipe(method, backend="llmcompressor", **options)


@pytest.mark.skipif(INSTALLED is None, reason="llm-compressor is not installed; its protocol is tested above")
@pytest.mark.parametrize(("method", "options"), RECIPES)
def test_the_real_one(small_model: Path, tmp_path: Path, method: str, options: dict) -> None:
    assert INSTALLED is not None
    assert json.loads((INSTALLED.path / store.MARK).read_text())["version"] == INSTALLED.version
    assert "VQP_BACKENDS_HOME" in os.environ or INSTALLED.path.is_relative_to(store.home())
    recipe = make_recipe(method, **options, **DATA)
    quantize_model(small_model, tmp_path / "out", recipe)
    check_output(small_model, tmp_path / "out", recipe)
