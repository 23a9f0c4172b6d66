"""The kernels compile for every target without a spill, and their main loops have not grown. Needs nvcc, not a GPU."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.cuda import machine_code, sass
from tests.cuda.compiled import NIGHTLY, UNITS, compile_unit

RECORD = json.loads(sass.RECORD.read_text())

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed: nothing to compile with")


@pytest.mark.parametrize(
    ("source", "target"), [*UNITS, *(pytest.param(*unit, marks=pytest.mark.nightly) for unit in NIGHTLY)]
)
def test_compiles_without_spills(source: str, target: str) -> None:
    made = compile_unit(source, target)
    assert not machine_code.faults(made.sass)
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", made.report)
    assert spills
    assert set(spills) == {("0", "0")}
    registers = [int(used) for used in re.findall(r"Used (\d+) registers", made.report)]
    assert max(registers) <= 255
    if source.startswith("wna16"):
        # Two CTAs of 256 threads fit on an SM up to 128 registers: all but the tiles of 64 tokens and more.
        assert sum(used > 128 for used in registers) <= (6 if target == "sm_90a" else 2)


def test_ptx_for_newer_gpus_is_made() -> None:
    text = compile_unit("wna16_int3.cu", "sm_80").ptx
    assert ".target sm_80" in text
    assert "mma.sync.aligned.m16n8k16" in text
    assert "barrier.cluster" not in text


def test_a_spill_fails_the_build(tmp_path: Path) -> None:
    source = tmp_path / "spill.cu"
    body = "".join(f"float v{i} = x[{i} * blockDim.x + threadIdx.x];\n" for i in range(64))
    uses = "".join(f"x[{i}] = v{63 - i} * v{(i * 7) % 64};\n" for i in range(64))
    source.write_text(
        f"__global__ void __launch_bounds__(1024, 2) spill(float *x) {{\n{body}__syncthreads();\n{uses}}}\n"
    )
    with pytest.raises(AssertionError, match="spill"):
        sass.compile_cubin(source, "sm_80", tmp_path / "out.cubin")


@pytest.mark.skipif(sass.disassembler() is None, reason="no nvdisasm: it comes with the CUDA toolkit or Triton")
def test_the_main_loop_has_not_grown() -> None:
    """Another release of nvcc may schedule a little differently; the recorded one may not."""
    slack = 1.02 if sass.compiler() == RECORD["nvcc"] else 1.15
    found = sass.measure()
    assert found.keys() == RECORD["kernels"].keys()
    for name, counts in found.items():
        recorded = RECORD["kernels"][name]
        assert counts["local"] == 0, f"{name}: local memory in the main loop"
        for exact in ("hmma", "ldsm", "ldgsts", "ffma", "hgmma"):
            assert counts.get(exact) == recorded.get(exact), f"{name}: {exact}"
        for bounded in ("loop", "dequantize"):
            assert counts[bounded] <= recorded[bounded] * slack, f"{name}: {bounded} {counts[bounded]}"
