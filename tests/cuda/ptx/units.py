"""The PTX of single kernels: a source that instantiates one template, compiled for one target, kept in build/ for as
long as no source changes. Some seconds each."""

from __future__ import annotations

import functools
import hashlib
import subprocess
import tempfile
from pathlib import Path

from tests.cuda.compiled import sources_state
from tests.cuda.ptx.opcodes import kernel_name
from tests.cuda.ptx.syntax import Kernel, parse
from tests.cuda.ptx.translate import Program
from tests.cuda.sass import INCLUDES, ROOT

CACHE = ROOT / "build" / "cuda-ptx-units"
PARAMETERS = {"wna16": "Wna16Params", "wna16_wide": "Wna16Params", "w8a8": "W8a8Params", "w8a8_wide": "W8a8WideParams",
              "quantize_rows": "QuantizeParams", "quantize_groups": "QuantizeParams"}  # fmt: skip
HEADERS = {"wna16": "wna16", "wna16_wide": "wna16", "w8a8": "w8a8", "w8a8_wide": "w8a8_wide",
           "quantize_rows": "quantize", "quantize_groups": "quantize"}  # fmt: skip
FLAGS = {"wna16": 1, "wna16_wide": 1, "w8a8": 2, "w8a8_wide": 1, "quantize_rows": 1}  # the last arguments are bool
# Kernels that are no templates of a header: their whole file.
FILES = {"pack": "abi.cu", "wna16_reduce": "abi.cu", "w8a8_reduce": "w8a8.cu"}


def source_of(kernel: str) -> str:
    """The source of a kernel such as ``wna16<Half,4,8,0>``."""
    name, _, arguments = kernel.rstrip(">").partition("<")
    if name in FILES:
        return f'#include "{FILES[name]}"\n'
    values = arguments.split(",")
    for at in range(len(values) - FLAGS.get(name, 0), len(values)):
        values[at] = ("false", "true")[int(values[at])]
    signature = f"{name}<{', '.join(values)}>(const __grid_constant__ {PARAMETERS[name]})"
    definition = f"template __global__ void {signature};"
    inner = f"namespace {{ {definition} }}" if name in ("w8a8_wide", "quantize_rows", "quantize_groups") else definition
    return f'#include "{HEADERS[name]}_entry.h"\nnamespace vqp {{ {inner} }}\n'


def text_of(kernel: str, target: str) -> str:
    """The PTX of the source that ``kernel`` is in."""
    source = source_of(kernel)
    key = f"{sources_state()}-{hashlib.sha256(f'{target} {source}'.encode()).hexdigest()[:16]}"
    cached = CACHE / f"{key}.ptx"
    if not cached.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        for old in CACHE.glob("*.ptx"):
            if not old.name.startswith(sources_state()):
                old.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            unit, output = Path(folder) / "unit.cu", Path(folder) / "unit.ptx"
            unit.write_text(source)
            command = ["nvcc", "-std=c++17", "-O3", *INCLUDES, "-ptx", f"-arch={target}", str(unit), "-o", str(output)]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            assert result.returncode == 0, result.stderr[-4000:]
            partial = cached.with_name(f"{key}.{Path(folder).name}")
            partial.write_text(output.read_text())
            partial.rename(cached)
    return cached.read_text()


def kernel_in(text: str, kernel: str) -> Kernel:
    return next(found for found in parse(text) if kernel_name(found.name) == kernel)


@functools.cache
def program(kernel: str, target: str) -> Program:
    return Program(kernel_in(text_of(kernel, target), kernel))
