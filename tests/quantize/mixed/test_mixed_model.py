"""Models of mixed precision are what was asked for, for `inspect`, `plan` and the engine alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from vllm_quant_kernels.scheme import Int
from vllm_quant_plugin.checkpoint import read_checkpoint
from vllm_quant_plugin.cli import main
from vllm_quant_plugin.evaluate.api import evaluate_model
from vllm_quant_plugin.formats import Host
from vllm_quant_plugin.formats.compressed_tensors import PACK_QUANTIZED
from vllm_quant_plugin.formats.fused import siblings
from vllm_quant_plugin.inspect import inspect_checkpoint
from vllm_quant_plugin.quantize.api import make_recipe, quantize_model
from vllm_quant_plugin.quantize.mixed import api
from vllm_quant_plugin.quantize.mixed.allocation import find_units
from vllm_quant_plugin.quantize.mixed.recipe_file import apply_lines
from vllm_quant_plugin.quantize.mixed.sensitivity import measure_units, measured_candidates
from vllm_quant_plugin.quantize.modules import check_input
from vllm_quant_plugin.quantize.reproduce import reproduce_model
from vllm_quant_plugin.schemes import StoredScheme

LINES = {"layers.0.self_attn": 8, "layers.1.mlp.down_proj": 16, "mlp": {"bits": 3, "group_size": 64}}


def _bits(name: str) -> int:
    if ".0.self_attn." in name:
        return 8
    if ".mlp." in name:
        return 16 if name.endswith("1.mlp.down_proj") else 3
    return 4


@pytest.mark.engine
@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_engine_inspect_and_plan_agree(
    small_model: Path, tmp_path: Path, method: str, capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoint = read_checkpoint(small_model)
    options = {"samples": 8, "seq_len": 64} if method == "gptq" else {}
    recipe = apply_lines(make_recipe(method, **options), LINES, checkpoint, check_input(checkpoint))
    report = quantize_model(small_model, tmp_path / "out", recipe)
    assert report.modules == 13
    found = {m.name: m for m in inspect_checkpoint(read_checkpoint(tmp_path / "out"), Host.local("cpu")).modules}
    for module in check_input(checkpoint):
        scheme = found[module.name].scheme
        assert (scheme.bits if scheme else 16) == _bits(module.name), module.name
    capfd.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["plan", str(tmp_path / "out"), "--cpu-memory", "16GiB", "--json"])
    assert stop.value.code == 0
    planned = json.loads(capfd.readouterr().out)
    assert planned["weight_bytes_per_rank"] == pytest.approx(report.bytes_after, rel=0.05)
    # The engine's distribution is that of the weights multiplied out: 8-bit parts are nearly exact, 3-bit ones are not.
    figures = evaluate_model(
        tmp_path / "out", reference=small_model, windows=2, window_len=64, noise=False, dtype="float32"
    )
    for text in figures.texts:
        assert text.kl is not None
        assert 1e-4 < text.kl.mean < 0.5


@pytest.mark.engine
def test_target(small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "SENSITIVITY_WINDOWS", 2)
    monkeypatch.setattr(api, "CHECK_WINDOWS", 4)
    monkeypatch.setattr(api, "WINDOW_LEN", 128)
    out = tmp_path / "out"
    report = api.quantize_to_target(small_model, out, make_recipe("rtn", symmetric=False), api.Target(3.5))
    assert report.bits_per_weight <= 3.5
    assert report.mixed is not None
    checked = report.mixed["checked_kl"]
    assert report.mixed["kept"] == min(checked, key=checked.get) == "mixed"
    assert checked["mixed"] < 0.9 * checked["uniform"]
    assert report.mixed["exact"]
    assert report.mixed["predicted_kl"] < report.mixed["uniform_predicted_kl"]
    # What the sum over units predicts is what the whole model loses, roughly.
    assert 0.3 < report.mixed["predicted_kl"] / checked["mixed"] < 3
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    record = json.loads((out / "quantization.json").read_text())
    assert record["mixed"]["kept"] == "mixed"
    assert record["output"] == str(out)
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: vllm")
    assert "# out\n" in card
    assert reproduce_model(out).identical


def test_sensitivities_fall_with_bits_and_leave_the_model_alone(small_model: Path) -> None:
    checkpoint = read_checkpoint(small_model)
    units = find_units(check_input(checkpoint))
    candidates = [
        StoredScheme(Int(b), g, symmetric=False, storage=PACK_QUANTIZED) for b in (2, 4, 8) for g in (128, 64)
    ]
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(2, 4096, (2, 32), generator=generator).tolist()
    losses = measure_units(checkpoint, units, candidates, make_recipe("rtn"), tokens, lambda *_: None)
    assert len(losses) == len(units) == 8
    for row in losses:
        two, two_fine, four, four_fine, eight, _ = row
        assert two > 5 * four > 0
        assert four > 5 * eight > 0
        assert two_fine < two
        assert four_fine < four
    assert losses == measure_units(checkpoint, units, candidates, make_recipe("rtn"), tokens, lambda *_: None)
    # One candidate per unit where branches do not fit.
    few = measure_units(checkpoint, units, candidates, make_recipe("rtn"), tokens, lambda *_: None, branch_bytes=1)
    assert all(row[0] > row[2] > row[4] > 0 for row in few)
    assert len(measured_candidates(candidates, 1)) == 1
    for unit in units:
        assert {m.name for m in unit.modules} == set(siblings(unit.modules[0].name))
