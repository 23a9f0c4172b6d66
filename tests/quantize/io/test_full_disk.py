"""A disk that is full from any write call on: one line, exit code 8, and nothing left but finished layers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vllm_quant_plugin.quantize.api import make_recipe, quantize_model

SUPPORT = Path(__file__).resolve().parents[2] / "support"

pytestmark = pytest.mark.skipif(not shutil.which("gcc"), reason="needs a C compiler")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("full-disk") / "full_disk.so"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-O1", str(SUPPORT / "full_disk.c"), "-o", str(path), "-ldl"], check=True
    )
    return path


def _runs(library: Path, folder: Path, job: dict[str, Any]) -> list[dict[str, Any]]:
    command = [sys.executable, str(SUPPORT / "on_full_disk.py"), str(library), str(folder), json.dumps(job)]
    done = subprocess.run(
        command, env={**os.environ, "LD_PRELOAD": str(library)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def _check(runs: list[dict[str, Any]]) -> None:
    last, *failed = runs
    assert failed
    assert last["code"] == 0, last
    for found in failed:
        assert found["code"] == 8, found
        assert "No space left on device" in found["message"]
        assert set(found["left"]) <= {".out.resume"}, found
        assert (".out.resume" in found["left"]) == ("kept in" in found["message"]), found


def test_with_calibration_text(library: Path, small_model: Path, short_text: str, tmp_path: Path) -> None:
    options = {"activations": "static", "smooth": "none", "samples": 2, "seq_len": 64, "calibration": short_text}
    runs = _runs(
        library, tmp_path / "x", {"model": str(small_model), "method": "int8", "points": 4, "options": options}
    )
    _check(runs)
    assert any("2 finished layers are kept" in found["message"] for found in runs)


def test_without_and_conversion(library: Path, small_model: Path, tmp_path: Path) -> None:
    _check(_runs(library, tmp_path / "x", {"model": str(small_model), "method": "fp8", "points": 4, "options": {}}))
    quantize_model(small_model, tmp_path / "rtn", make_recipe("rtn", bits=4))
    _check(_runs(library, tmp_path / "x", {"model": str(tmp_path / "rtn"), "to": "gptq", "points": 4}))
