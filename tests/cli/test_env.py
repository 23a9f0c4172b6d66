"""``vllm-quant env``, and what the command line says of a variable with a wrong value."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from vllm_quant_kernels.env import VARIABLES


def run(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vllm_quant_plugin", *words]
    environment = {**os.environ, "COLUMNS": "200", **variables}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_it_prints_every_variable_and_its_value() -> None:
    done = run("env", VQP_CPU_ISA="avx2", VQP_CUDA_KERNELS="yes", VQP_ADMIN_TOKEN="word")
    assert done.returncode == 0, done.stderr
    assert all((v.name in done.stdout) != v.internal for v in VARIABLES)
    assert "avx2" in done.stdout
    assert "yes (must be 0, 1)" in done.stdout
    assert "word" not in done.stdout.replace("words", "")


def test_json_has_values_and_validity_and_no_secret() -> None:
    done = run("env", "--json", VQP_CPU_ISA="avx2", VQP_CUDA_KERNELS="yes", VQP_ADMIN_TOKEN="word")
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert set(rows) == {v.name for v in VARIABLES}
    assert rows["VQP_CPU_ISA"]["value"] == "avx2"
    assert rows["VQP_CPU_ISA"]["valid"]
    assert rows["VQP_CUDA_KERNELS"]["valid"] is False
    assert rows["VQP_ADMIN_TOKEN"]["value"] == "(set)"
