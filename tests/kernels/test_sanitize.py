"""The kernels under AddressSanitizer and UndefinedBehaviorSanitizer, at each level of this CPU and at amx, emulated."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "sanitize"


@pytest.mark.nightly
@pytest.mark.skipif(
    shutil.which("g++") is None or shutil.which("cmake") is None, reason="needs a C++ compiler and cmake"
)
def test_no_memory_error_and_no_undefined_behaviour() -> None:
    """Built once into build/sanitize (about two minutes of one core); later runs only rebuild what changed."""
    options = ["-DCMAKE_BUILD_TYPE=None", "-DVQP_SANITIZE=ON", "-DVQP_CUDA=OFF"]
    subprocess.run(["cmake", "-S", ROOT / "kernels", "-B", BUILD, *options], check=True, capture_output=True)
    built = subprocess.run(
        ["cmake", "--build", BUILD, "--target", "vqp_sanitize", "--parallel", "2"], capture_output=True, text=True
    )
    assert built.returncode == 0, built.stdout[-4000:]
    # An engine that ran in this process before may have preloaded an allocator, which ASan refuses.
    clean = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    done = subprocess.run([BUILD / "vqp_sanitize"], env=clean, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert "0 failures" in done.stdout
