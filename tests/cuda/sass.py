"""Instruction counts of the decode kernels' main loop, from the disassembly.

python -m tests.cuda.sass        records them in tests/cuda/instructions.json
"""

from __future__ import annotations

import collections
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RECORD = Path(__file__).with_name("instructions.json")
TARGET = "sm_90a"
KERNEL = re.compile(r"(inner_loop|wide_loop_of)INS_(\d+)(\w+?)ELi(\d+)E")
SOURCES = ("inner_loop.cu", "wide_loop.cu")
# ptxas says so where it cannot let wgmma run asynchronously: C7510 to C7519.
SERIALIZED = re.compile(r"\(C751\d\).*")
INCLUDES = ["-I", str(ROOT / "kernels/cuda"), "-I", str(ROOT / "kernels/include")]


def compile_cubin(source: Path, target: str, output: Path, options: tuple[str, ...] = ()) -> str:
    """Compile for one target; a register spill is an error. Returns ptxas's report."""
    command = ["nvcc", "-std=c++17", "-O3", *INCLUDES, "-cubin", f"-arch={target}", str(source), "-o", str(output)]
    ptxas = ["-Xptxas", "-v,--warn-on-spills,--warning-as-error"]
    result = subprocess.run([*command, *ptxas, *options], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-4000:]
    serialized = SERIALIZED.findall(result.stderr)
    assert not serialized, serialized
    return result.stderr


def disassembler() -> str | None:
    """nvdisasm of the CUDA toolkit, or the one in Triton's package."""
    found = shutil.which("nvdisasm") or shutil.which("/usr/local/cuda/bin/nvdisasm")
    if found:
        return found
    try:
        import triton
    except ImportError:
        return None
    bundled = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    return str(bundled) if bundled.is_file() else None


MATRIX = re.compile("HMMA|HGMMA")


def main_loop(section: str) -> list[str]:
    """The instructions of the innermost loop around the matrix instructions, one text each."""
    instructions: list[str] = []
    labels: dict[str, int] = {}
    for line in section.splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif instruction := re.match(r"\s+/\*[0-9a-f]+\*/\s+(.*?);", line):
            instructions.append(instruction[1])
    for end, text in enumerate(instructions):
        branch = re.search(r"\bBRA\b.*`\((\.L_x_\d+)\)", text)
        start = labels.get(branch[1], end + 1) if branch else end + 1
        if start <= end and any(MATRIX.match(opcode(body)) for body in instructions[start:end]):
            return instructions[start : end + 1]
    raise AssertionError("no loop around matrix instructions")


def opcode(instruction: str) -> str:
    return next(word for word in instruction.split() if not word.startswith("@")).split(".")[0]


def count(cubin: Path) -> dict[str, dict[str, int]]:
    """Of each kernel: all instructions of the main loop, and those of the classes that matter."""
    tool = disassembler()
    assert tool
    text = subprocess.run([tool, "-c", str(cubin)], capture_output=True, text=True, check=True).stdout
    counts = {}
    for section in re.split(r"\n\s*\.section\s+\.text\.", text)[1:]:
        name = KERNEL.search(section.split(",")[0])
        assert name
        loop = main_loop(section)
        kinds = collections.Counter(opcode(instruction) for instruction in loop)
        kind = "fp8" if name[4] == "9" else f"int{name[4]}"
        if name[1] != "inner_loop":
            kind = f"int4-{name[4]}-tokens"
        classes = {"loop": len(loop), "local": kinds["LDL"] + kinds["STL"]}
        classes["dequantize"] = sum(kinds[op] for op in ("LOP3", "SHF", "PRMT", "HFMA2", "HADD2", "HMUL2"))
        classes |= {op.lower(): kinds[op] for op in ("HMMA", "LDSM", "LDGSTS", "FFMA")}
        if kinds["HGMMA"]:
            classes |= {"hgmma": kinds["HGMMA"]}
        counts[f"{kind}-{'fp16' if name[3] == 'Half' else 'bf16'}"] = classes
    return dict(sorted(counts.items()))


def compiler() -> str:
    """The release of nvcc, such as 13.0."""
    text = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release (\d+\.\d+)", text)
    assert found
    return found[1]


def measure() -> dict[str, dict[str, int]]:
    with tempfile.TemporaryDirectory() as folder:
        cubin, counts = Path(folder) / "loop.cubin", {}
        for source in SOURCES:
            compile_cubin(Path(__file__).with_name(source), TARGET, cubin)
            counts |= count(cubin)
        return dict(sorted(counts.items()))


if __name__ == "__main__":
    RECORD.write_text(json.dumps({"nvcc": compiler(), "target": TARGET, "kernels": measure()}, indent=1) + "\n")
