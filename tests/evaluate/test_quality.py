"""``quantize`` ends with a measured report beside the model, and ``--max-kl`` decides its exit code."""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import pytest
import torch

from vllm_quant_plugin.cli import main
from vllm_quant_plugin.errors import OutputError, QualityError, StartupError
from vllm_quant_plugin.evaluate import api, quality
from vllm_quant_plugin.text.windows import BUNDLED


@pytest.mark.engine
def test_report_card_and_gate_of_a_mixed_recipe(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality.assess, "__kwdefaults__", {**quality.assess.__kwdefaults__, "windows": 3})
    recipe, out = tmp_path / "r.yaml", tmp_path / "out"
    recipe.write_text("method: rtn\nself_attn: 8\nlayers.0-3.mlp: {bits: 3, group_size: 64}\nmlp: 2\n")
    with pytest.raises(SystemExit) as stop:
        main(["quantize", str(BUNDLED), "--recipe", str(recipe), "-o", str(out), "--max-kl", "0.01", "--json"])
    assert stop.value.code == QualityError.exit_code
    printed, _ = capfd.readouterr()
    # vLLM's log, which a terminal does not see, then two objects: the run's, and the error's.
    printed = printed[printed.index("{\n") :]
    first, end = json.JSONDecoder().raw_decode(printed)
    second = json.loads(printed[end:])
    assert second["error"]["exit_code"] == 9
    found = first["quality"]
    assert found == json.loads((out / "quality.json").read_text())
    assert len(found["texts"]) == 2
    for text in found["texts"]:
        assert text["windows"] == 3
        assert text["tokens"] == 3 * 255
        # Two of three bits of the weights of half the model are gone; its own noise is a hundred times less.
        assert 0.01 < text["kl"]["mean"] < 1
        assert 0 < text["noise"]["mean"] < text["kl"]["mean"] / 20
        assert text["perplexity"] > text["reference_perplexity"]
        assert 0 < text["kl"]["top1_agreement"] < 1
    layers = {row["layer"]: row["error"] for row in found["layers"]}
    assert len(layers) == 8
    # The last four layers have fewer bits, and errors add up.
    assert 0 < layers["model.layers.0"] < layers["model.layers.3"] < layers["model.layers.7"] < 1
    card = (out / "README.md").read_text()
    assert "| heldout-code.txt |" in card
    assert "INT2 g128 sym" in card
    assert "Not measured" not in card
    assert "<svg" in (out / "quality.html").read_text()
    assert str(tmp_path) not in card + (out / "quality.html").read_text() + (out / "quality.json").read_text()


def test_a_model_that_does_not_fit_the_memory_is_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    class Little:
        available = 1 << 20

    monkeypatch.setattr(psutil, "virtual_memory", Little)
    with pytest.raises(StartupError, match="are free"):
        quality.assess(BUNDLED, BUNDLED)


def test_a_large_original_is_compared_on_a_cpu_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(quality, "QUICK_CPU_BYTES", 1_000_000)
    monkeypatch.setattr(api, "evaluate_model", mock.Mock(side_effect=StopIteration))
    with pytest.raises(StartupError, match="more than a CPU compares with quickly"):
        quality.assess(BUNDLED, BUNDLED)
    with pytest.raises(StopIteration):
        quality.assess(BUNDLED, BUNDLED, quick=False)


def test_a_page_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "none" / "q.html"):
        with pytest.raises(SystemExit) as stop:
            main(["eval", str(BUNDLED), "--html", str(place)])
        assert stop.value.code == OutputError.exit_code


def test_a_gate_without_measurement_is_refused_before_the_work(tmp_path: Path) -> None:
    for words in (
        ["quantize", str(BUNDLED), "-m", "int8", "-o", str(tmp_path / "out"), "--no-eval", "--max-kl", "1"],
        ["eval", str(BUNDLED), "--max-kl", "1"],
    ):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 2
    assert not (tmp_path / "out").exists()
