"""Whole runs killed with SIGKILL and resumed give the same files; benchmarks/quantize_kills.py does it 25 times."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch

from vllm_quant_plugin.quantize.api import Recipe, make_recipe, quantize_model
from vllm_quant_plugin.quantize.io.report import hash_tensor_files

ROOT = Path(__file__).resolve().parents[3]


def _die(model: Path, output: Path, recipe: Recipe, layer: int, threads: int) -> None:
    # Part of what a resumed run must have in common with this one.
    torch.set_num_threads(threads)

    def die(_what: str, done: int, _total: int) -> None:
        if done == layer:
            os.kill(os.getpid(), signal.SIGKILL)

    quantize_model(model, output, recipe, resume=True, progress=die)


def _run_and_die(model: Path, output: Path, recipe: Recipe, layer: int) -> None:
    """A run in a process of its own that gets SIGKILL from within, when ``layer`` layers are finished.

    Forked from a server without threads: a fork of the test's own process would inherit locks
    whose holders do not exist there.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vllm_quant_plugin.quantize.api", "torch"])
    child = context.Process(target=_die, args=(model, output, recipe, layer, torch.get_num_threads()))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL


def test_three_kills_give_one_result(
    small_model: Path, short_text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT)  # where the child finds this module
    recipe = make_recipe("awq", level="3bit-64g", samples=4, seq_len=64, calibration=short_text)
    whole = quantize_model(small_model, tmp_path / "whole", recipe)
    # After the first layer, after the second (before anything is written), and both in one run.
    for number, layers in enumerate([(1,), (2,), (1, 2)]):
        output = tmp_path / f"out-{number}"
        for layer in layers:
            _run_and_die(small_model, output, recipe, layer)
            assert list(tmp_path.glob(f".out-{number}.partial-*"))
        resumed = quantize_model(small_model, output, recipe, resume=True)
        assert resumed.resumed_layers == layers[-1]
        assert hash_tensor_files(output) == whole.files
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out-0", "out-1", "out-2", "whole"]
