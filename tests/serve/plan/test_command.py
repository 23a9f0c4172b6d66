"""``vllm-quant plan`` as a process: what it prints, its exit codes, and that it stays light."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BUNDLED = Path(__file__).parents[3] / "vllm_quant_plugin" / "data" / "stdlib-llama"
ROOT = Path(__file__).parents[3]
NO_TORCH = (
    "import sys\n"
    "from vllm_quant_plugin.cli import main\n"
    "try:\n    main(sys.argv[1:])\n"
    "finally:\n    heavy = {'torch', 'vllm', 'transformers', 'numpy'} & set(sys.modules)\n"
    "    print(sorted(heavy), file=sys.stderr)\n"
)


def run(*arguments: str, code: str | None = None) -> subprocess.CompletedProcess[str]:
    paths = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "serve"), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p), "COLUMNS": "100", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code] if code else [sys.executable, "-m", "vllm_quant_plugin"]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, env=env, timeout=120, check=False)


@pytest.mark.parametrize("extra", [[], ["--json"]])
def test_plan_never_imports_torch(extra):
    done = run("plan", str(BUNDLED), "--gpu", "h100:4", *extra, code=NO_TORCH)
    assert done.returncode == 0
    assert done.stderr.strip() == "[]"


def test_table_shows_memory_placements_and_the_serve_line():
    done = run("plan", str(BUNDLED), "--gpu", "h100:4")
    assert done.returncode == 0, done.stderr
    for text in ("weights per rank", "KV tokens", "79.10 GiB per device", "TP 3: 4 attention heads", "vllm serve"):
        assert text in done.stdout


def test_json_is_one_object_with_the_flags():
    done = run("plan", str(BUNDLED), "--cpu-memory", "8GiB", "--json")
    data = json.loads(done.stdout)
    assert data["device"] == "CPU"
    assert data["serve_args"][0] == "--kv-cache-memory-bytes"
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([str(BUNDLED), "--gpu-memory", "1MiB"], 3, "does not fit"),
        ([str(BUNDLED), "--gpu", "h100", "-tp", "3"], 3, "needs 3 devices"),
        ([str(BUNDLED), "--gpu", "abacus"], 2, "not in the table"),
        ([str(BUNDLED), "--gpu-memory", "many"], 2, "is not a size"),
        (["no/such/folder", "--gpu", "h100"], 6, "no such folder"),
    ],
)
def test_failures_are_one_line_with_a_code(arguments, code, message):
    done = run("plan", *arguments, "--json")
    assert done.returncode == code
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert json.loads(done.stdout)["error"]["exit_code"] == code
