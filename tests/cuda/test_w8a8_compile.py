"""The 8-bit kernels compile for every target without a spill, to the instructions that the documents name."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cuda import sass

SOURCES = sass.ROOT / "kernels" / "cuda"
# On sm_90 the compiler unpacks E4M3 to FP16 for mma.sync: FP8 rates are wgmma's alone.
TARGETS = [
    ("w8a8_int8.cu", "sm_80", "IMMA.16832"),
    ("w8a8_fp8.cu", "sm_89", "QMMA.16832"),
    ("w8a8_fp8.cu", "sm_90a", "HMMA.16816"),
    ("quantize.cu", "sm_86", None),
    ("w8a8.cu", "sm_90a", None),
]

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed: nothing to compile with")


def matrix_instructions(cubin: Path) -> set[str]:
    tool = sass.disassembler()
    assert tool
    text = subprocess.run([tool, "-c", str(cubin)], capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"\b([IQH]MMA\.\d+)", text))


@pytest.mark.parametrize(("source", "target", "instruction"), TARGETS)
def test_compiles_without_spills(source: str, target: str, instruction: str | None, tmp_path: Path) -> None:
    """`make cuda` builds every file for all targets, under the same flags."""
    report = sass.compile_cubin(SOURCES / source, target, tmp_path / "out.cubin")
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert spills
    assert set(spills) == {("0", "0")}
    assert max(int(used) for used in re.findall(r"Used (\d+) registers", report)) <= 255
    if instruction and sass.disassembler():
        assert matrix_instructions(tmp_path / "out.cubin") == {instruction}
