"""Large second moments are spilled to disk while GPTQ works in their memory: same results, nothing left behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vllm_quant_plugin.quantize.algorithms import gptq
from vllm_quant_plugin.quantize.api import make_recipe, preflight, quantize_model
from vllm_quant_plugin.quantize.engine import in_place
from vllm_quant_plugin.quantize.engine.in_place import spilled


def test_values_come_back_as_often_as_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_place, "SPILL_BYTES", 0)
    matrix = torch.randn(300, 300, generator=torch.Generator().manual_seed(0))
    before, place = matrix.clone(), matrix.data_ptr()
    with spilled(matrix, tmp_path) as restore:
        assert restore is not None
        for _ in range(2):
            matrix.zero_()
            restore()
            assert torch.equal(matrix, before)
        # A killed run would leave whatever has a name.
        assert not list(tmp_path.iterdir())
    assert matrix.data_ptr() == place


def test_a_small_matrix_is_not_written(tmp_path: Path) -> None:
    with spilled(torch.zeros(8, 8), tmp_path / "absent") as restore:
        assert restore is None


def test_a_whole_run_writes_the_same_bytes(small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = make_recipe("gptq", level="4bit-64g", samples=4, seq_len=64, mse=0.0)
    copied = quantize_model(small_model, tmp_path / "copied", recipe)
    plan = preflight(small_model, tmp_path / "out", recipe)
    for module in (in_place, gptq):
        monkeypatch.setattr(module, "SPILL_BYTES", 0)
    made = quantize_model(small_model, tmp_path / "out", recipe)
    assert (made.files, made.errors) == (copied.files, copied.errors)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copied", "out"]
    # The file that the largest of them waits in: down_proj has 768 inputs.
    assert preflight(small_model, tmp_path / "other", recipe).disk_bytes == plan.disk_bytes + 4 * 768**2
