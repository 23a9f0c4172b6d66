"""compute-sanitizer's memcheck, racecheck and synccheck find nothing in a sweep of small problems."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck"])
@pytest.mark.parametrize("script", ["sanitized.py", "sanitized_w8a8.py"])
def test_clean(script: str, tool: str) -> None:
    sanitizer = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    assert sanitizer, "compute-sanitizer is not on PATH: it comes with the CUDA toolkit"
    command = [
        sanitizer,
        "--tool",
        tool,
        "--error-exitcode",
        "86",
        sys.executable,
        str(ROOT / "tests" / "gpu" / script),
    ]
    path = os.pathsep.join([str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    # Whole allocations from the driver: the caching allocator would hide accesses beyond a tensor.
    environment = {**os.environ, "PYTHONPATH": path, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if "Device not supported" in result.stdout:
        pytest.skip("compute-sanitizer refuses this device: a container or virtual machine without debugging")
    assert result.returncode == 0, (result.stdout + result.stderr)[-6000:]
    assert "0 errors" in result.stdout or "0 hazards" in result.stdout, result.stdout[-2000:]
