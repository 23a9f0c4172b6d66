"""Checks of the machine code that ptxas makes: what neither the PTX nor the compiler's report shows.

python -m tests.cuda.machine_code LIBRARY     checks every kernel of a library; needs cuobjdump and nvdisasm

:mod:`tests.cuda.uniform` looks for uniform registers that nothing writes, :mod:`tests.cuda.in_flight` for registers of
a wgmma that are touched before its wait, and for registers beyond what ``setmaxnreg`` leaves.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.cuda import in_flight, uniform
from tests.cuda.sass import disassembler


def faults(disassembly: str) -> list[str]:
    """One line per fault, beginning with the kernel's name."""
    return uniform.undefined(disassembly) + in_flight.touched(disassembly) + in_flight.beyond(disassembly)


def faults_in(cubin: Path) -> list[str]:
    """The same of a compiled file. Empty where there is no disassembler."""
    tool = disassembler()
    if not tool:
        return []
    return faults(subprocess.run([tool, "-c", str(cubin)], capture_output=True, text=True, check=True).stdout)


def main(library: str) -> int:
    tool = disassembler()
    if not tool:
        print("no nvdisasm: it comes with the CUDA toolkit or Triton")
        return 1
    extractor = Path(tool).with_name("cuobjdump")
    with tempfile.TemporaryDirectory() as folder:
        command = [str(extractor), "-xelf", "all", str(Path(library).resolve())]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        cubins = sorted(Path(folder).glob("*.cubin"))
        lines = [f"{cubin.name}: {line}" for cubin in cubins for line in faults_in(cubin)]
    print("\n".join(lines) or f"{len(cubins)} files of machine code without a fault")
    return bool(lines) or not cubins


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
