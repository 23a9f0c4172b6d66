"""Uniform registers that a kernel's machine code reads and nothing in it writes: what ptxas left undefined.

An instruction takes the descriptor of a global access from a uniform register (``desc[UR4]``), and the hardware refuses
an invalid one as an illegal instruction. ptxas 13.0 and 13.1 leave it undefined where they drop the ``createpolicy`` of
a ``cp.async`` with ``L2::cache_hint``; neither the PTX nor the compiler's report shows that.
"""

from __future__ import annotations

import re

SECTION = re.compile(r"\n\s*\.section\s+\.text\.")
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)\s*(.*?)\s*;")
REGISTER = re.compile(r"\bUR(\d+)\b")
# These write a uniform register besides those whose names begin with U.
WRITERS = ("R2UR", "S2UR", "CS2UR", "VOTEU", "REDUX", "CREDUX")


def written(opcode: str, operands: list[str]) -> set[int]:
    """The uniform registers that an instruction writes: its first operands, up to the first of another kind."""
    if not opcode.startswith(("U", *WRITERS)):
        return set()
    found: set[int] = set()
    for operand in operands:
        if register := re.fullmatch(r"UR(\d+)", operand):
            width = 4 if ".128" in opcode else 2 if ".64" in opcode or ".WIDE" in opcode else 1
            return found | {int(register[1]) + i for i in range(width)}
        if not re.fullmatch(r"U?P[T\d]", operand):
            break
    return found


def undefined(disassembly: str) -> list[str]:
    """One line per kernel with undefined uniform registers: its name, the registers, and an instruction that reads
    one."""
    lines = []
    for section in SECTION.split(disassembly)[1:]:
        defined: set[int] = set()
        reads: dict[int, str] = {}
        for opcode, text in INSTRUCTION.findall(section):
            operands = [operand.strip() for operand in text.split(",")]
            writes = written(opcode, operands)
            defined |= writes
            sources = operands[1:] if writes else operands
            for register in REGISTER.findall(",".join(sources)):
                reads.setdefault(int(register), f"{opcode} {text}")
        if missing := sorted(reads.keys() - defined):
            name = section.split(",")[0].split()[0]
            registers = ", ".join(f"UR{number}" for number in missing)
            lines.append(f"{name}: nothing writes {registers}, read by {reads[missing[0]]}")
    return lines
