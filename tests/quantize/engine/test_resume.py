"""A run that is killed and resumed writes the same bytes as one that is not; anything else is refused."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from vllm_quant_plugin.errors import OutputError, ResumeError
from vllm_quant_plugin.quantize.api import make_recipe, quantize_model
from vllm_quant_plugin.quantize.engine.journal import Journal

RECIPE = make_recipe("awq", level="3bit-64g", samples=8, seq_len=64)


class _Killed(BaseException):
    """Ends a run from the inside, as a kill would."""


def _stop_after(layers: int):
    def progress(what: str, done: int, total: int) -> None:
        if done == layers:
            raise _Killed

    return progress


def test_resumed_run_writes_the_same_bytes(small_model: Path, tmp_path: Path) -> None:
    whole = quantize_model(small_model, tmp_path / "whole", RECIPE)
    out = tmp_path / "out"
    with pytest.raises(_Killed):
        quantize_model(small_model, out, RECIPE, progress=_stop_after(1))
    assert (tmp_path / ".out.resume" / "state.json").exists()
    resumed = quantize_model(small_model, out, RECIPE, resume=True)
    assert resumed.resumed_layers == 1
    assert resumed.files == whole.files
    assert resumed.errors == whole.errors
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "whole"]


def test_another_recipe_is_refused(small_model: Path, tmp_path: Path) -> None:
    with pytest.raises(_Killed):
        quantize_model(small_model, tmp_path / "out", RECIPE, progress=_stop_after(1))
    other = make_recipe("awq", level="4bit-64g", samples=8, seq_len=64, seed=3)
    with pytest.raises(ResumeError, match=r"--bits was 3, is 4; .*--seed was 0, is 3"):
        quantize_model(small_model, tmp_path / "out", other, resume=True)
    # The state is still there for the run it belongs to.
    assert quantize_model(small_model, tmp_path / "out", RECIPE, resume=True).resumed_layers == 1


def test_without_resume_a_run_starts_over(small_model: Path, tmp_path: Path) -> None:
    with pytest.raises(_Killed):
        quantize_model(small_model, tmp_path / "out", RECIPE, progress=_stop_after(1))
    assert quantize_model(small_model, tmp_path / "out", RECIPE).resumed_layers == 0


def test_one_run_at_a_time(tmp_path: Path) -> None:
    first = Journal(tmp_path, {"a": 1}, resume=False)
    with pytest.raises(OutputError, match="another run"):
        Journal(tmp_path, {"a": 1}, resume=True)
    first.close()
    Journal(tmp_path, {"a": 1}, resume=True).close()


def test_damaged_state_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(OutputError, match="damaged"):
        Journal(tmp_path, {}, resume=True)


def _work(folder: Path, layers: int) -> None:
    """Sixty layers whose state is easy to predict."""
    journal = Journal(folder, {"a": 1}, resume=True)
    hidden = journal.hidden() if journal.layers else [torch.zeros(3, 5)]
    for index in range(journal.layers, layers):
        hidden = [h + index for h in hidden]
        journal.commit(
            index, {"t": torch.full((64, 64), float(index))}, {str(index): float(index)}, hidden, {str(index): index}
        )
    journal.close()


def test_kill_9_at_random_moments_loses_nothing(tmp_path: Path) -> None:
    chance, started = random.Random(0), []
    for _ in range(25):
        child = os.fork()
        if child == 0:
            _work(tmp_path, 60)
            os._exit(0)
        time.sleep(chance.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        journal = Journal(tmp_path, {"a": 1}, resume=True)
        started.append(journal.layers)
        journal.close()
    assert started == sorted(started)
    _work(tmp_path, 60)
    journal = Journal(tmp_path, {"a": 1}, resume=True)
    assert journal.layers == 60
    assert torch.equal(journal.hidden()[0], torch.full((3, 5), float(sum(range(60)))))
    assert [float(t[0, 0]) for _, t in journal.tensors()] == [float(i) for i in range(60)]
    assert journal.errors == {str(i): float(i) for i in range(60)}
    journal.close()
