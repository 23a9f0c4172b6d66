"""The 8-bit kernels compile to the instructions that the documents name."""

from __future__ import annotations

import re
import shutil

import pytest

from tests.cuda import sass
from tests.cuda.compiled import compile_unit

# On sm_90 the compiler unpacks E4M3 to FP16 for mma.sync: FP8 rates are wgmma's alone.
INSTRUCTIONS = [
    ("w8a8_int8.cu", "sm_80", "IMMA.16832"),
    ("w8a8_fp8.cu", "sm_90a", "HMMA.16816"),
    pytest.param("w8a8_fp8.cu", "sm_89", "QMMA.16832", marks=pytest.mark.nightly),
]

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed: nothing to compile with")


# Warp instructions of the main loop for 128 channels x 128 columns, the decode kernels of 8 tokens: by kernel file,
# whether they accumulate in FP32, and whether x is quantized in the kernel. docs/internals/cuda-w8a8.md draws on them.
LOOPS = {
    ("w8a8_int8.cu", False, False): 118,
    ("w8a8_int8.cu", False, True): 94,
    ("w8a8_fp8.cu", False, False): 180,
    ("w8a8_fp8.cu", True, False): 257,
    ("w8a8_fp8.cu", True, True): 183,
}


LOOP_TARGETS = {"w8a8_int8.cu": "sm_80", "w8a8_fp8.cu": "sm_90a"}


def longest_loop(section: str) -> int:
    """Instructions of the outermost loop around matrix instructions."""
    count, labels, found = 0, dict[str, int](), 0
    matrix: list[int] = []
    for line in section.splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = count
        elif re.match(r"\s+/\*[0-9a-f]+\*/\s+.*?;", line):
            if re.search(r"\b[IQH]MMA\.", line):
                matrix.append(count)
            count += 1
            if branch := re.search(r"\bBRA\b.*`\((\.L_x_\d+)\)", line):
                start = labels.get(branch[1], count)
                if any(start <= at < count for at in matrix):
                    found = count - start
    return found


@pytest.mark.skipif(sass.disassembler() is None, reason="no nvdisasm: it comes with the CUDA toolkit or Triton")
@pytest.mark.parametrize(("source", "target", "instruction"), INSTRUCTIONS)
def test_matrix_instructions(source: str, target: str, instruction: str) -> None:
    assert set(re.findall(r"\b([IQH]MMA\.\d+)", compile_unit(source, target).sass)) == {instruction}


@pytest.mark.skipif(sass.disassembler() is None, reason="no nvdisasm: it comes with the CUDA toolkit or Triton")
@pytest.mark.parametrize("source", LOOP_TARGETS)
def test_the_decode_loops_have_not_grown(source: str) -> None:
    """Another release of nvcc may schedule a little differently."""
    text = compile_unit(source, LOOP_TARGETS[source]).sass
    found = {}
    for section in re.split(r"\n\s*\.section\s+\.text\.", text)[1:]:
        name = re.search(r"w8a8ILi\d+ELi8ELb(\d)ELb(\d)E", section.split(",")[0])
        if name:
            found[source, name[1] == "1", name[2] == "1"] = longest_loop(section)
    assert found.keys() == {key for key in LOOPS if key[0] == source}
    slack = 1.02 if sass.compiler() == "13.0" else 1.15
    for key, count in found.items():
        assert 0 < count <= LOOPS[key] * slack, f"{key}: {count}"


# The kernels for large M, by kind, channels and whether they accumulate in FP32: the wgmma, and the FP32 additions per
# thread and K tile.
WIDE = {
    ("8", 128, False): ("IGMMA.64x128x32.S8.S8", 0),
    ("8", 256, False): ("IGMMA.64x256x32.S8.S8", 0),
    ("9", 128, False): ("QGMMA.64x128x32.F32.E4M3.E4M3", 0),
    ("9", 256, False): ("QGMMA.64x256x32.F32.E4M3.E4M3", 0),
    ("9", 128, True): ("QGMMA.64x128x32.F32.E4M3.E4M3", 64),
}


@pytest.mark.skipif(sass.disassembler() is None, reason="no nvdisasm: it comes with the CUDA toolkit or Triton")
def test_the_wide_kernels_issue_wgmmas_without_waits_between() -> None:
    made = compile_unit("w8a8_wide.cu", "sm_90a")
    assert not re.search(r"setmaxnreg.*ignored|C7508", made.report)
    found = {}
    for section in re.split(r"\n\s*\.section\s+\.text\.", made.sass)[1:]:
        name = re.search(r"w8a8_wideILi(\d+)ELi(\d+)ELb(\d)E", section.split(",")[0])
        assert name
        instructions = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Za-z0-9_.]+)", section)
        wgmmas = [i for i, opcode in enumerate(instructions) if "GMMA" in opcode]
        assert len(wgmmas) == 4
        # Nothing waits between the four wgmmas of a K tile.
        between = instructions[wgmmas[0] : wgmmas[-1]]
        assert not any(opcode.startswith(("WARPGROUP", "BAR", "SYNCS")) for opcode in between)
        assert {"USETMAXREG.TRY_ALLOC.CTAPOOL", "USETMAXREG.DEALLOC.CTAPOOL"} <= set(instructions)
        assert {"UTMALDG.2D", "UTMALDG.2D.MULTICAST"} <= set(instructions)
        found[name[1], int(name[2]), name[3] == "1"] = (instructions[wgmmas[0]], instructions.count("FFMA"))
    assert found == WIDE
