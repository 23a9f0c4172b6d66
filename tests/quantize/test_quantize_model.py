"""Whole runs on two layers of the bundled model: what is written, and how close it is to the input."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from vllm_quant_kernels.canonical import CanonicalWeight
from vllm_quant_plugin.checkpoint import read_checkpoint
from vllm_quant_plugin.errors import OutputError
from vllm_quant_plugin.formats import get_format, parse_quantization_config
from vllm_quant_plugin.formats.fused import siblings
from vllm_quant_plugin.formats.host import Host
from vllm_quant_plugin.quantize.api import make_recipe, quantize_model
from vllm_quant_plugin.quantize.io.report import hash_tensor_files
from vllm_quant_plugin.quantize.modules import linear_modules

MODULES = 2 * 7


def _weights(source: Path, made: Path) -> Iterator[tuple[str, torch.Tensor, CanonicalWeight]]:
    """(module, original weight, canonical form read back from disk)."""
    before, after = read_checkpoint(source), read_checkpoint(made)
    model = parse_quantization_config(after.quantization_config)

    def load(checkpoint, name: str) -> torch.Tensor:
        with safe_open(checkpoint.tensors[name].file, "pt") as file:
            return file.get_tensor(name)

    for module in linear_modules(before):
        scheme = model.scheme_for(module.name)
        assert scheme is not None
        leaves = [n for n in after.tensors if n.rpartition(".")[0] == module.name]
        tensors = {n.rpartition(".")[2]: load(after, n) for n in leaves}
        n, k = module.out_features, module.in_features
        layout = get_format(scheme)
        layout.validate(module.name, tensors, scheme, n, k)
        yield (
            module.name,
            load(before, f"{module.name}.weight").float(),
            layout.unpack(tensors, scheme, n, k).validate(),
        )


# Largest error of rounding, as a share of the scale: half a step for integers; for FP8 half the
# distance of neighbours in the top binade, 16 of the scale's units.
@pytest.mark.parametrize(
    ("method", "level", "steps"),
    [
        ("int8", None, 0.5),
        ("int8", "W8A16", 0.5),
        ("rtn", "3bit-64g", 0.5),
        ("fp8", None, 16.0),
        ("fp8", "tensor", 16.0),
        ("fp8", "block", 16.0),
    ],
)
def test_data_free_methods_round_to_nearest(
    small_model: Path, tmp_path: Path, method: str, level: str | None, steps: float
) -> None:
    report = quantize_model(small_model, tmp_path / "out", make_recipe(method, level=level))
    assert report.modules == MODULES
    seen = 0
    for name, original, weight in _weights(small_model, tmp_path / "out"):
        error = (weight.dequantize() - original).abs()
        scale = weight.scales.float()[:, weight.group_index()]
        # Scales stored in bfloat16 are off by up to 2**-9, which the last code of a range feels.
        assert bool((error <= scale * steps * 1.02 + original.abs() * 2**-8).all()), name
        seen += 1
    assert seen == MODULES


def test_output_is_a_complete_model_folder(small_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    report = quantize_model(small_model, out, make_recipe("int8"))
    assert sorted(p.name for p in out.iterdir()) == [
        "README.md",
        "config.json",
        "generation_config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "quantization.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert [p.name for p in out.parent.iterdir()] == ["out"]
    config = json.loads((out / "config.json").read_text())
    original = json.loads((small_model / "config.json").read_text())
    assert {k: v for k, v in config.items() if k != "quantization_config"} == original
    record = json.loads((out / "quantization.json").read_text())
    assert record["files"] == hash_tensor_files(out)
    assert record["bytes_after"] == read_checkpoint(out).nbytes == report.bytes_after
    assert record["bytes_before"] == read_checkpoint(small_model).nbytes
    # One byte a weight and a float32 scale per output channel.
    assert 8 < report.bits_per_weight < 8.2
    card = (out / "README.md").read_text()
    assert report.recipe.describe() in card
    assert "vllm-quant serve out\n" in card
    alone = "cuda" if Host.local("cpu").lacks_vnni else "cpu, cuda"
    assert f"without the plugin on: {alone}." in card
    text = card + "".join(p.read_text() for p in out.glob("*.json") if p.name not in ("quantization.json",))
    assert "/tmp" not in text
    assert str(tmp_path) not in text


def test_per_tensor_fp8_shares_scales_among_fused_modules(small_model: Path, tmp_path: Path) -> None:
    quantize_model(small_model, tmp_path / "out", make_recipe("fp8", level="tensor"))
    scales = {name: float(weight.scales[0, 0]) for name, _, weight in _weights(small_model, tmp_path / "out")}
    for name in scales:
        assert {scales[s] for s in siblings(name)} == {scales[name]}


@pytest.fixture(scope="module")
def calibrated(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """AWQ, GPTQ and round-to-nearest at 3 bits in groups of 64, the first two on a little text."""
    folder = tmp_path_factory.mktemp("calibrated")
    for method in ("awq", "gptq"):
        recipe = make_recipe(method, level="3bit-64g-asym", samples=16, seq_len=128)
        report = quantize_model(small_model, folder / method, recipe)
        assert len(report.errors) == MODULES
        assert any("few" in warning for warning in report.warnings)
    quantize_model(small_model, folder / "rtn", make_recipe("rtn", level="3bit-64g-asym"))
    return {name: folder / name for name in ("awq", "gptq", "rtn")}


def _logits(folder: Path, made: Path | None) -> torch.Tensor:
    """Logits of the transformers model in float32, with the weights of ``made`` multiplied out."""
    from transformers import AutoModelForCausalLM

    from vllm_quant_plugin.text.windows import HELD_OUT, load_tokenizer, read_windows

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    parameters = dict(model.named_parameters())
    if made is not None:
        after = read_checkpoint(made)
        for name, info in after.tensors.items():
            if name in parameters:
                with safe_open(info.file, "pt") as file:
                    parameters[name].data.copy_(file.get_tensor(name))
        for name, _, weight in _weights(folder, made):
            parameters[f"{name}.weight"].data.copy_(weight.dequantize())
    windows = torch.tensor(read_windows(HELD_OUT[0], load_tokenizer(folder), 128, 16))
    with torch.no_grad():
        return torch.log_softmax(model(windows).logits, -1)


def test_calibrated_methods_beat_round_to_nearest(small_model: Path, calibrated: dict[str, Path]) -> None:
    base = _logits(small_model, None)
    kl = {
        name: float((base.exp() * (base - _logits(small_model, made))).sum(-1).mean())
        for name, made in calibrated.items()
    }
    assert kl["awq"] < 0.9 * kl["rtn"]
    assert kl["gptq"] < 0.9 * kl["rtn"]


def test_same_inputs_same_bytes(small_model: Path, calibrated: dict[str, Path], tmp_path: Path) -> None:
    for method in ("awq", "gptq"):
        recipe = make_recipe(method, level="3bit-64g-asym", samples=16, seq_len=128)
        report = quantize_model(small_model, tmp_path / method, recipe)
        assert report.files == hash_tensor_files(calibrated[method])


def test_overwrite_replaces_and_failure_leaves_things_as_they_were(small_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = quantize_model(small_model, out, make_recipe("int8"))
    with pytest.raises(OutputError, match="exists already"):
        quantize_model(small_model, out, make_recipe("fp8"))
    assert hash_tensor_files(out) == first.files

    def fail(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_model(small_model, out, make_recipe("fp8"), overwrite=True, progress=fail)
    assert hash_tensor_files(out) == first.files
    second = quantize_model(small_model, out, make_recipe("fp8"), overwrite=True)
    assert hash_tensor_files(out) == second.files != first.files
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
