"""What nvcc makes of a file of kernels/cuda, once for all tests: PTX, ptxas's report and the disassembly.

Kept in build/cuda-tests for as long as no source of the kernels changes.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.cuda import sass

SOURCES = sass.ROOT / "kernels" / "cuda"
CACHE = sass.ROOT / "build" / "cuda-tests"
PARTS = ("ptx", "report", "sass")

# Compiled by `make test`: every family, and both generations of tensor cores. `make test-nightly` compiles NIGHTLY
# too, and `make cuda` every file for every target.
UNITS = (
    ("abi.cu", "sm_90a"),
    ("quantize.cu", "sm_90a"),
    ("w8a8.cu", "sm_90a"),
    ("w8a8_int8.cu", "sm_80"),
    ("w8a8_fp8.cu", "sm_90a"),
    ("w8a8_wide.cu", "sm_90a"),
    ("wna16_int3.cu", "sm_80"),
    ("wna16_int4.cu", "sm_90a"),
)
NIGHTLY = (
    ("abi.cu", "sm_80"),
    ("quantize.cu", "sm_86"),
    ("w8a8_fp8.cu", "sm_89"),
    ("wna16_int4.cu", "sm_80"),
    ("wna16_int7.cu", "sm_86"),
    ("wna16_int8.cu", "sm_89"),
    ("wna16_fp8.cu", "sm_90a"),
)


@dataclass(frozen=True)
class Compiled:
    """Attributes:
    ptx: the PTX that the target's code was made of.
    report: of ptxas: registers and spills of each kernel.
    sass: the disassembly; empty where there is no nvdisasm.
    """

    ptx: str
    report: str
    sass: str


@functools.cache
def sources_state() -> str:
    """A hash of the compiler and of every file that may be included."""
    files = sorted(path for folder in sass.INCLUDES[1::2] for path in Path(folder).iterdir())
    digest = hashlib.sha256(sass.compiler().encode())
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def compile_unit(source: str, target: str) -> Compiled:
    """Compile a file for one target; a register spill is an error. A second process waits for the first."""
    CACHE.mkdir(parents=True, exist_ok=True)
    folder = CACHE / f"{source}-{target}-{sources_state()}"
    with (CACHE / f"{source}-{target}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            for old in CACHE.glob(f"{source}-{target}-*"):
                _remove(old)
            _compile(source, target, folder)
    return Compiled(*((folder / part).read_text() for part in PARTS))


def _compile(source: str, target: str, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        made = Path(name)
        cubin, keep = made / "out.cubin", made / "keep"
        keep.mkdir()
        (made / "report").write_text(
            sass.compile_cubin(SOURCES / source, target, cubin, ("--keep", "--keep-dir", str(keep)))
        )
        (ptx,) = keep.glob("*.ptx")
        ptx.rename(made / "ptx")
        tool = sass.disassembler()
        text = subprocess.run([tool, "-c", str(cubin)], capture_output=True, text=True, check=True) if tool else None
        (made / "sass").write_text(text.stdout if text else "")
        folder.mkdir()
        for part in PARTS:
            (made / part).rename(folder / part)


def _remove(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
