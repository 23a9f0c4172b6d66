"""The steps of `make gpu-check` without a GPU: a test that faults, crashes or hangs costs the others nothing."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
TORCH = """
class cuda:
    fault = False
    def is_initialized(): return True
    def synchronize():
        if cuda.fault: raise RuntimeError("an illegal memory access")
"""
TESTS = """
import os, time, torch
def test_first(): pass
def test_faults(): torch.cuda.fault = True
def test_wrong(): assert 1 == 2
def test_crashes(): os.kill(os.getpid(), 11)
def test_hangs(): time.sleep(600)
def test_last(): pass
"""


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """scripts/gpu_check.py over a copy of tests/gpu's set-up with tests of its own, and a stand-in for torch."""
    spec = importlib.util.spec_from_file_location("gpu_check", ROOT / "scripts" / "gpu_check.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_check", module)
    spec.loader.exec_module(module)
    tests = tmp_path / "tests" / "gpu"
    tests.mkdir(parents=True)
    for name in ("conftest.py", "pytest.ini"):
        shutil.copy(ROOT / "tests" / "gpu" / name, tests)
    (tests / "test_toy.py").write_text(TESTS)
    (tmp_path / "torch.py").write_text(TORCH)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "TESTS", tests)
    monkeypatch.setattr(module, "BUILD", tmp_path / "build")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.delenv("OUT", raising=False)
    return module


def new_run(check: ModuleType, folder: Path, seconds: float = 60) -> Any:
    return check.Run(folder, time.monotonic() + seconds, [], True)


def test_every_test_is_run_whatever_the_others_do(check: ModuleType, tmp_path: Path) -> None:
    outcome = check.run_tests(new_run(check, tmp_path), check.test_files(lambda name: True), 60, timeout=4)
    assert outcome.status == "failed"
    # The first passes, the one whose fault shows only behind it, and the last.
    assert outcome.detail["counts"] == {"begun": 6, "passed": 3, "failed": 1}
    assert outcome.detail["failed"] == {
        "test_toy.py::test_faults": "the process ended with 70",
        "test_toy.py::test_wrong": "failed",
        "test_toy.py::test_crashes": "the process ended with -11",
        "test_toy.py::test_hangs": "no answer",
    }
    assert "illegal memory access" in (tmp_path / "gpu-check.log").read_text()


def test_passing_tests_pass(check: ModuleType, tmp_path: Path) -> None:
    (check.TESTS / "test_toy.py").write_text("def test_one(): pass\ndef test_two(): pass\n")
    outcome = check.run_tests(new_run(check, tmp_path), check.test_files(lambda name: True), 60)
    assert (outcome.status, outcome.detail) == ("passed", {"counts": {"begun": 2, "passed": 2}, "failed": {}})


def test_a_step_ends_with_its_time(check: ModuleType, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(60)"]
    status, output = new_run(check, tmp_path).command(command, 2)
    assert (status, output) == ("late", "begun\n")
    assert "begun" in (tmp_path / "gpu-check.log").read_text()


PROBE = """
import os, sys, time
if sys.argv[1] == "--list": print("right wrong faults hangs")
elif sys.argv[1] == "right": print("relative error 0.001")
elif sys.argv[1] == "wrong": sys.exit("relative error 0.7")
elif sys.argv[1] == "faults": os.kill(os.getpid(), 11)
else: time.sleep(600)
"""


def test_a_probe_that_hangs_or_faults_costs_no_other(
    check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "gpu_probe.py").write_text(PROBE)
    monkeypatch.setattr(check, "PROBE_SECONDS", 5.0)
    run = new_run(check, tmp_path)
    outcome = check.probes(run, 60)
    assert outcome.status == "failed"
    assert run.broken == {"faults", "hangs"}, "a wrong one is found before it is timed"
    assert {name: found["status"] for name, found in outcome.detail.items()} == {
        "right": 0, "wrong": 1, "faults": -11, "hangs": "late"
    }  # fmt: skip
    assert outcome.detail["right"]["last"] == "relative error 0.001"
    assert outcome.detail["wrong"]["last"] == "relative error 0.7"


FAMILIES = """
import json, sys
rows = {"pack": {"status": "right"}, "wna16-int4-wide": {"status": "hung", "reason": "no answer"}}
json.dump(rows, open(sys.argv[4], "w"))
sys.exit(1)
"""


def test_the_families_are_checked_with_a_library_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No NVML for Python, no plugin: nvidia-smi, the library and torch. Children stand in for those on a GPU."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import gpu_families

    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'GPU-1, NVIDIA H100 80GB HBM3, 580.65.06, 9.0'\n")
    smi.chmod(0o755)
    (tmp_path / "lib.so").write_bytes(b"code")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("VQP_CUDA_LIBRARY", str(tmp_path / "lib.so"))
    monkeypatch.setenv("PYTHONPATH", "")
    gpu_families.machine.library_hash.cache_clear()
    planted = ROOT / "tests" / "cuda" / "verify" / "planted.py"
    child = (sys.executable, "-S", str(planted), '{"pack": "signal"}', "--report", "{report}")
    made = functools.partial(gpu_families.Verification, child=child)
    monkeypatch.setattr(gpu_families, "Verification", made)
    monkeypatch.setattr(gpu_families, "sanitized", lambda name, gpu: [f"illegal instruction in {name}"])
    target = tmp_path / "families.json"
    monkeypatch.setattr(sys, "argv", ["gpu_families.py", "--seconds", "90", "--json", str(target)])
    assert gpu_families.main() == 1
    gpu_families.machine.library_hash.cache_clear()
    found = json.loads(target.read_text())
    assert found["pack"]["status"] == "died"
    assert found["pack"]["sanitizer"] == ["illegal instruction in pack"]
    assert found["wna16-int4-narrow"]["status"] == "right"
    assert gpu_families.smi_gpu().capability == (9, 0)
    assert "pack                   died" in capsys.readouterr().out


def test_what_hangs_is_left_out_of_the_benchmarks(check: ModuleType, tmp_path: Path) -> None:
    for folder, name, text in (("scripts", "gpu_families.py", FAMILIES),
                               ("benchmarks", "gpu_linear.py", "import sys; print(*sys.argv[1:])")):  # fmt: skip
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text(text)
    run = new_run(check, tmp_path)
    run.bundle = check.Bundle(peers=tmp_path / "C.so")
    outcome = check.families(run, 60)
    assert outcome.status == "failed"
    assert outcome.detail == {"right": 1, "not right": {"wna16-int4-wide": {"status": "hung", "reason": "no answer"}}}
    check.benchmark(run, "linear", "gpu_linear.py", 60, ["--quick"])
    said = (tmp_path / "gpu-check.log").read_text()
    assert f"--quick --peers-library {tmp_path}/C.so --without vqp,vqp-no-pdl --json" in said


def test_a_library_that_was_brought_along_takes_the_place_of_the_build(
    check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VQP_CUDA_LIBRARY", "")
    run = new_run(check, tmp_path)
    run.bundle = check.Bundle(library=tmp_path / "libvqp_cuda.so")
    assert check.build(run, 1).status == "passed"
    assert os.environ["VQP_CUDA_LIBRARY"] == str(tmp_path / "libvqp_cuda.so")
    assert check.engine(run, 1).status == ("failed" if importlib.util.find_spec("vllm") else "skipped")


def test_the_results_are_one_table(check: ModuleType, tmp_path: Path) -> None:
    times = {"vqp": {"us": 12.0}, "marlin": {"us": 20.0}}
    case = {"kind": "fp8", "mode": "gemm", "m": 1, "n": 2, "k": 3}
    (tmp_path / "linear.json").write_text(json.dumps({"cases": [{"case": "square-1", "results": times}]}))
    (tmp_path / "w8a8.json").write_text(json.dumps({"cases": [{**case, "results": times}]}))
    rows = [{"part": "speed", "name": "ours", "decode_1": 123.45}, {"part": "speed", "name": "bf16", "reason": "late"}]
    (tmp_path / "engine.json").write_text(json.dumps({"rows": rows}))
    assert [" ".join(line.split()) for line in check.figures(tmp_path)] == [
        "linear square-1 vqp 12.0 us, marlin 20.0 us",
        "w8a8 fp8 gemm 1 2 3 vqp 12.0 us, marlin 20.0 us",
        "engine ours decode_1 123.5",
        "engine bf16 reason late",
    ]


def test_the_probes_are_those_of_every_peer() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_probe.py")]
    names = subprocess.run([*command, "--list"], capture_output=True, text=True, check=True).stdout.split()
    assert {name.split("-")[0] for name in names} == {"marlin", "machete", "humming"}
    unknown = subprocess.run([*command, "none"], capture_output=True, text=True, check=False)
    assert unknown.returncode == 2
    assert "invalid choice" in unknown.stderr


def test_the_summary_is_written_step_by_step(
    check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = tmp_path / "build" / "results" / "summary.json"

    def build(run: Any, limit: float) -> Any:
        return check.Outcome("failed")

    def device(run: Any, limit: float) -> Any:
        assert "build" not in (json.loads(summary.read_text()) if summary.exists() else {})
        return check.Outcome("passed", detail={"device": "stand-in"})

    monkeypatch.setitem(check.STEPS, "build", (1, build))
    monkeypatch.setitem(check.STEPS, "device", (1, device))
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--steps", "device,build,tests"])
    assert check.main() == 1
    found = json.loads(summary.read_text())
    assert {name: step["status"] for name, step in found.items()} == {
        "device": "passed", "build": "failed", "tests": "skipped"
    }  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--steps", "device,linear", "--seconds", "3"])
    assert check.main() == 1
    assert json.loads(summary.read_text())["linear"]["status"] == "late"


def test_a_program_that_is_not_there_fails_its_step_alone(
    check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(run: Any, limit: float) -> Any:
        run.command(["no-such-program"], limit)

    monkeypatch.setitem(check.STEPS, "plans", (1, absent))
    monkeypatch.setitem(check.STEPS, "layers", (1, lambda run, limit: check.Outcome("passed")))
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--steps", "plans,layers"])
    assert check.main() == 1
    found = json.loads((tmp_path / "build" / "results" / "summary.json").read_text())
    assert found["layers"]["status"] == "passed"
    assert "no-such-program" in found["plans"]["detail"]["error"]


def test_an_unknown_step_is_named() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "gpu_check.py"), "--steps", "build,speed"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "no step speed" in result.stderr


def test_every_step_names_files_that_exist(check: ModuleType) -> None:
    text = (ROOT / "scripts" / "gpu_check.py").read_text()
    for name in ("gpu_linear.py", "gpu_experts.py", "gpu_w8a8.py", "gpu_plans.py", "gpu_serve.py", "gpu_engine.py"):
        assert f'"{name}"' in text
        assert (ROOT / "benchmarks" / name).is_file()
