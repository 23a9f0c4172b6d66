"""Registers in the machine code of kernels for sm_90a that hardware leaves undefined: those of a wgmma before its wait,
and those beyond what ``setmaxnreg`` leaves.

An instruction is taken to follow the one before it in the text: loops around wgmma are unrolled, and their waits stand
in the same run of code.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.cuda.uniform import SECTION

LINE = re.compile(r"(?P<label>\.L_x_\d+):|\s+/\*[0-9a-f]{4,}\*/\s+(?P<text>.*?)\s*;")
GUARD = re.compile(r"^@!?U?P\w+\s+")
REGISTER = re.compile(r"\bR(\d+)\b")
BRANCH = re.compile(r"\b(BRA|CALL\S*)\b.*`\((\.L_x_\d+)\)")
NO_RESULT = ("ST", "LDGSTS", "BAR", "SYNCS", "UTMALDG", "RED")
REGISTERS = 255


@dataclass
class Section:
    """The instructions of a kernel, and where its labels stand."""

    name: str
    code: list[str]
    labels: dict[str, int]


def sections(disassembly: str) -> list[Section]:
    found = []
    for text in SECTION.split(disassembly)[1:]:
        section = Section(text.split(",")[0].split()[0], [], {})
        for line in map(LINE.match, text.splitlines()):
            if line and line["label"]:
                section.labels[line["label"]] = len(section.code)
            elif line:
                section.code.append(line["text"])
        found.append(section)
    return found


def written(opcode: str, operands: str) -> set[int]:
    first = REGISTER.match(operands)
    if not first or opcode.startswith(NO_RESULT):
        return set()
    width = 4 if ".128" in opcode else 2 if ".64" in opcode or "WIDE" in opcode else 1
    return set(range(int(first[1]), int(first[1]) + width))


def product(opcode: str, operands: str) -> tuple[set[int], set[int]]:
    """A and the accumulators of a wgmma."""
    columns = re.search(r"64x(\d+)x", opcode)
    d, a = (REGISTER.match(part.strip()) for part in operands.split(",")[:2])
    assert columns
    assert d
    return (
        set(range(int(a[1]), int(a[1]) + 4)) if a else set(),
        set(range(int(d[1]), int(d[1]) + int(columns[1]) // 2)),
    )


def touched(disassembly: str) -> list[str]:
    """Where A of a wgmma is written, or its accumulators are touched, before the wait for it."""
    lines = []
    for section in sections(disassembly):
        groups: list[list[tuple[set[int], set[int]]]] = []
        issued: list[tuple[set[int], set[int]]] = []
        for text in section.code:
            opcode, _, operands = GUARD.sub("", text).partition(" ")
            if "GMMA" in opcode:
                issued.append(product(opcode, operands))
                if "gsb0" in operands:  # the last of a group
                    groups, issued = [*groups, issued], []
                continue
            if "DEPBAR" in opcode and "gsb0" in operands:
                pending = int(operands.split(",")[1].strip(), 16)
                groups = groups[len(groups) - pending :] if pending else []
                continue
            flights = [flight for group in [*groups, issued] for flight in group]
            results, names = written(opcode, operands), {int(number) for number in REGISTER.findall(operands)}
            if any(results & a or names & d for a, d in flights):
                lines.append(f"{section.name}: a register of a wgmma in flight is touched by {text}")
    return lines


def beyond(disassembly: str) -> list[str]:
    """Code that follows a setmaxnreg and names registers it does not leave."""
    lines = []
    for section in sections(disassembly):
        for start, text in enumerate(section.code):
            if limit := re.search(r"USETMAXREG\S* .*?(0x[0-9a-f]+)", text):
                used = max(reachable_registers(section, start + 1), default=0)
                if used >= int(limit[1], 16):
                    lines.append(f"{section.name}: R{used} is used after {text}")
    return lines


def reachable_registers(section: Section, start: int) -> set[int]:
    """The registers named by whatever may run from an instruction on."""
    seen: set[int] = set()
    registers: set[int] = set()
    places = [start]
    while places:
        at = places.pop()
        while at < len(section.code) and at not in seen:
            seen.add(at)
            text = section.code[at]
            registers |= {int(number) for number in REGISTER.findall(text)}
            if branch := BRANCH.search(text):
                places.append(section.labels.get(branch[2], len(section.code)))
                if text.startswith("BRA `"):
                    break
            if text.startswith("EXIT"):
                break
            at += 1
    return registers
