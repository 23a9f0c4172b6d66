"""Level amx on any CPU with AVX-512 BF16: its tile instructions are trapped and carried out by amx_emulator.cpp.

The library is the one that ships. On a CPU with AMX the other tests run that level as they run the others.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vllm_quant_kernels.cpu import library

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(__file__).with_name("amx_emulator.cpp")
# VEX encodings as objdump prints them.
INSTRUCTIONS = ("ldtilecfg", "tilezero", "tileloadd", "tilestored", "tdpbf16ps", "tdpbusd", "tilerelease")


def best_level() -> str:
    return library.LEVELS[library.load().vqp_cpu_max_level()] if library.available() else "reference"


def has_tile_kernels() -> bool:
    """Whether the compiler that built the library knew the instructions: their kernels are there by name."""
    path = library.library_path()
    return path is not None and b"vqp_amx_emulate" in path.read_bytes()


pytestmark = pytest.mark.skipif(not has_tile_kernels(), reason="the library is not built with AMX kernels")


@pytest.fixture(scope="module")
def emulator() -> Path:
    """The emulator, compiled once for each state of its source (seconds)."""
    if best_level() != "avx512_bf16":
        pytest.skip(f"the emulator serves a CPU with AVX-512 BF16 and without AMX; this one has {best_level()}")
    target = ROOT / "build" / "amx-emulator" / f"{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]}.so"
    if not target.exists():
        compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
        if compiler is None:
            pytest.skip("needs a C++ compiler")
        shutil.rmtree(target.parent, ignore_errors=True)
        target.parent.mkdir(parents=True)
        # No contraction: the emulator says itself which products are fused.
        options = ["-std=c++17", "-O3", "-mavx2", "-mfma", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
        partial = target.with_suffix(f".{os.getpid()}")
        subprocess.run([compiler, *options, "-shared", "-fPIC", SOURCE, "-o", partial], check=True)
        partial.rename(target)
    return target


def run(emulator: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Python with the emulator loaded."""
    preload = " ".join(filter(None, (str(emulator), os.environ.get("LD_PRELOAD", ""))))
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "LD_PRELOAD": preload, "VQP_CPU_LIBRARY": str(library.library_path()), **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def counts(stderr: str) -> dict[str, int]:
    """What the emulator says at the end of the process."""
    line = next(line for line in stderr.splitlines() if line.startswith("amx emulator: "))
    return {name: int(number) for number, name in re.findall(r"(\d+) (\w+)", line)}


# Uncaptured: what the emulator says before it ends a process is seen.
PYTEST = ("-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header")


def test_levels(emulator: Path) -> None:
    """The tests of every level, at level amx."""
    done = run(emulator, *PYTEST, "tests/kernels/test_levels.py", "-k", "amx")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout
    seen = counts(done.stderr)
    assert seen["tdpbf16ps"] > 1000
    assert seen["tdpbusd"] > 1000
    assert seen["configured"] == seen["released"] > 100


def test_operators(emulator: Path) -> None:
    """The tests of the operators, with weights and shapes of any kind."""
    tests = "any_weight or one_hot or w8a8_equals or model_sized"
    done = run(emulator, *PYTEST, "tests/kernels/test_ops.py", "-k", tests, VQP_CPU_ISA="amx")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert counts(done.stderr)["tdpbf16ps"] > 1000


def test_emulator_refuses_what_a_cpu_refuses(emulator: Path, tmp_path: Path) -> None:
    """A use of a tile before its configuration, a second configuration, a reserved byte, an unknown instruction."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    flags = ["-std=c++17", "-mamx-tile", "-mamx-bf16", "-mamx-int8"]
    program = str(tmp_path / "misuse")
    subprocess.run(
        [str(compiler), *flags, str(SOURCE.with_name("amx_misuse.cpp")), str(emulator), "-o", program], check=True
    )
    outcomes = [
        "1 configured, 1 released",
        "a tile is used before LDTILECFG",
        "TILERELEASE is missing",
        "LDTILECFG: reserved byte",
        "a tile is used that is not configured",
        "none of the tile instructions",
    ]
    for case, words in enumerate(outcomes):
        done = subprocess.run([program, str(case)], capture_output=True, text=True)
        assert (done.returncode == 0) == (case == 0), done.stderr
        assert words in done.stderr


@pytest.mark.skipif(shutil.which("objdump") is None, reason="needs objdump")
def test_library_holds_the_instructions() -> None:
    path = library.library_path()
    done = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", str(path)], capture_output=True, text=True, check=True
    )
    missing = [name for name in INSTRUCTIONS if f"\t{name}" not in done.stdout]
    assert not missing
