"""Operands as Python expressions over the 32 lanes of a warp.

A register is ``R[slot]``: 32 unsigned integers, or booleans for a predicate. Expressions never change an array, so
that a value may be shared by several registers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np

from tests.cuda.ptx.arrays import Array
from tests.cuda.ptx.shared import BASE
from tests.cuda.ptx.syntax import Instruction, Kernel, bits_of

LANES = 32
PARAMETER_WINDOW = 1 << 60  # generic addresses of parameters
POISON = {1: False, 16: 0x7F5A, 32: 0x7FC0DEAD, 64: 0x7FF8DEADDEADDEAD}  # a NaN in every format
UNSIGNED = {1: np.bool_, 8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
ADDRESS = re.compile(r"\[([^+\]]+)(?:\+(-?\w+))?\]")


def numpy_name(kind: str) -> str:
    """The name, in generated code, of the numpy type of a PTX type."""
    if kind == "pred":
        return "bool_"
    width = bits_of(kind) // 8
    return {"s": "i", "f": "f" if kind in ("f32", "f64") else "u"}.get(kind[0], "u") + str(width)


@dataclass
class Operands:
    """The registers of a kernel as slots, and the constants of its code."""

    kernel: Kernel
    slots: dict[str, int] = field(default_factory=dict)
    constants: list[Array] = field(default_factory=list)
    _known: dict[tuple[int, str], int] = field(default_factory=dict)

    def slot(self, register: str) -> int:
        return self.slots.setdefault(register, len(self.slots))

    def is_register(self, operand: str) -> bool:
        return operand in self.kernel.registers or operand.rstrip("0123456789") in self.kernel.registers

    def poison(self) -> list[Array]:
        """What registers hold before anything is written to them."""
        out = []
        for register in self.slots:
            bits = self.kernel.bits(register)
            out.append(np.full(LANES, POISON[bits], UNSIGNED[bits]))
        return out

    def constant(self, value: int, bits: int) -> str:
        key = (value, str(bits))
        if key not in self._known:
            self._known[key] = len(self.constants)
            self.constants.append(np.full(LANES, value & ((1 << bits) - 1), UNSIGNED[bits]))
        return f"K[{self._known[key]}]"

    def number(self, operand: str, bits: int) -> int:
        """The value of an immediate or of a symbol's address."""
        if operand in self.kernel.parameters:
            return self.kernel.parameters[operand]
        if operand in self.kernel.shared:
            return BASE
        if re.fullmatch(r"0[fF][0-9a-fA-F]{8}", operand):
            assert bits == 32, f"{operand} as {bits} bits"
            return int(operand[2:], 16)
        return int(operand.rstrip("U"), 0)

    def value(self, operand: str, kind: str) -> str:
        """An expression for an operand of PTX type ``kind``, of that type's numpy type."""
        if operand.startswith("!"):
            return f"~{self.value(operand[1:], kind)}"
        width = bits_of(kind)
        if self.is_register(operand):
            bits, text = self.kernel.bits(operand), f"R[{self.slot(operand)}]"
            if bits > width:
                text = f"{text}.astype(u{width // 8})"
            assert bits >= width, f"{operand} is narrower than {kind}"
        elif operand.startswith("%"):
            text = f"S[{operand[1:]!r}]"
            return text if width == 32 else f"{text}.astype(u{width // 8})"
        else:
            text = self.constant(self.number(operand, max(width, 8)), width)
        name = numpy_name(kind)
        return text if name[0] in "ub" else f"{text}.view({name})"

    def address(self, operand: str, bits: int) -> str:
        """``[register+offset]`` or ``[symbol+offset]``."""
        found = ADDRESS.fullmatch(operand)
        assert found, operand
        offset = int(found[2] or "0", 0)
        if not self.is_register(found[1]):
            return self.constant(self.number(found[1], bits) + offset, bits)
        base = f"R[{self.slot(found[1])}]"
        return f"({base} + {self.constant(offset, bits)})" if offset else base

    def address_bits(self, operand: str) -> int:
        found = ADDRESS.fullmatch(operand)
        assert found, operand
        return self.kernel.bits(found[1]) if self.is_register(found[1]) else 64

    def result(self, operand: str, text: str, kind: str) -> tuple[int, str]:
        """The slot of a destination, and ``text``, an expression of type ``kind``, as what the register holds."""
        bits, width = self.kernel.bits(operand), bits_of(kind)
        if bits > width:
            # Loads and conversions extend to the register, by the sign of a signed type.
            text = f"{text}.astype({numpy_name(kind)[0]}{bits // 8})"
            kind = f"{kind[0]}{bits}"
        if numpy_name(kind)[0] in "if":
            text = f"{text}.view(u{bits // 8})"
        return self.slot(operand), text

    def vector(self, operand: str) -> list[str]:
        return operand[1:-1].split(",") if operand.startswith("{") else [operand]

    def registers_of(self, operand: str) -> list[int]:
        return [self.slot(name) for name in re.findall(r"%?[\w']+", operand) if self.is_register(name)]


def touched(operands: Operands, instruction: Instruction) -> set[int]:
    """Every register that an instruction names."""
    found = {slot for operand in instruction.operands for slot in operands.registers_of(operand)}
    if instruction.guard:
        found.add(operands.slot(instruction.guard[0]))
    return found
