"""PTX text to kernels and instructions: what nvcc emits, inline assembly included."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

ENTRY = re.compile(r"^(?:\.visible )?\.entry ([\w$]+)\(", re.MULTILINE)
PARAMETER = re.compile(r"\.param (?:\.align (\d+) )?\.(\w+) ([\w$]+)(?:\[(\d+)\])?")
LABEL = re.compile(r"([$\w]+):(?!:)")
REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(.*)", re.DOTALL)
SHARED = re.compile(r"\.extern \.shared \.align (\d+) \.b8 ([\w$]+)\[\]")
SPACE = re.compile(r"\s+")
BITS = {"pred": 1, "b8": 8, "u8": 8, "s8": 8}


def bits_of(kind: str) -> int:
    """The width of a type such as ``b32``, ``f16x2`` or ``pred``."""
    if kind in BITS:
        return BITS[kind]
    number = re.fullmatch(r"(?:bf|[bsuf])(\d+)(x2)?", kind)
    assert number, f"unknown type {kind}"
    return int(number[1]) * (2 if number[2] else 1)


@dataclass(frozen=True)
class Instruction:
    """One statement. ``guard``: a predicate register and whether it is negated."""

    opcode: str
    operands: tuple[str, ...]
    guard: tuple[str, bool] | None
    line: int

    @property
    def parts(self) -> list[str]:
        return self.opcode.split(".")

    def __str__(self) -> str:
        guard = f"@{'!' if self.guard[1] else ''}{self.guard[0]} " if self.guard else ""
        return f"line {self.line}: {guard}{self.opcode} {', '.join(self.operands)}"[:200]


@dataclass
class Kernel:
    """One entry. ``parameters``: name to offset; ``registers``: name, or prefix of numbered names, to bits."""

    name: str
    target: str
    parameters: dict[str, int] = field(default_factory=dict)
    parameter_bytes: int = 0
    parameter_alignment: int = 1
    max_threads: int = 1024
    min_ctas: int = 1
    shared: dict[str, int] = field(default_factory=dict)  # alignment of each extern array
    registers: dict[str, int] = field(default_factory=dict)
    code: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)

    def bits(self, register: str) -> int:
        if register in self.registers:
            return self.registers[register]
        return self.registers[register.rstrip("0123456789")]


def split_operands(text: str) -> tuple[str, ...]:
    """At the commas outside of brackets and braces."""
    found, depth, start = [], 0, 0
    for at, letter in enumerate(text):
        if letter in "[{":
            depth += 1
        elif letter in "]}":
            depth -= 1
        elif letter == "," and not depth:
            found.append(text[start:at])
            start = at + 1
    found.append(text[start:])
    return tuple(SPACE.sub("", part) for part in found if part.strip())


class _Body:
    """The statements of a body. A scope's own registers are renamed, since scopes reuse names."""

    def __init__(self, kernel: Kernel, text: str, first_line: int) -> None:
        self.kernel, self.text, self.first_line = kernel, text, first_line
        self.scopes: list[dict[str, str]] = []
        self.count = 0
        self.renamed: re.Pattern[str] | None = None

    def parse(self) -> None:
        at, line, counted = 0, self.first_line, 0
        while True:
            while at < len(self.text) and self.text[at].isspace():
                at += 1
            if at == len(self.text):
                return
            if self.text[at] == "{":
                self.scopes.append({})
                self.count += 1
                at += 1
            elif self.text[at] == "}":
                self.scopes.pop()
                self.find_renamed()
                at += 1
                if not self.scopes:
                    return
            elif label := LABEL.match(self.text, at):
                self.kernel.labels[label[1]] = len(self.kernel.code)
                at = label.end()
            else:
                end = self.text.index(";", at)
                line, counted = line + self.text.count("\n", counted, at), at
                self.statement(self.text[at:end].strip(), line)
                at = end + 1

    def declare(self, kind: str, names: str) -> None:
        for name in names.split(","):
            numbered = re.fullmatch(r"\s*(%\w+?)<\d+>\s*", name)
            if numbered:
                self.kernel.registers[numbered[1]] = bits_of(kind)
            else:
                plain = name.strip()
                unique = f"{plain}'{self.count}'" if len(self.scopes) > 1 else plain
                self.scopes[-1][plain] = unique
                self.kernel.registers[unique] = bits_of(kind)
        self.find_renamed()

    def find_renamed(self) -> None:
        names = "|".join(re.escape(name) for scope in self.scopes for name in scope)
        self.renamed = re.compile(rf"(?<![\w%$.'])({names})(?![\w'])") if names else None

    def local(self, operand: str) -> str:
        if not self.renamed:
            return operand
        return self.renamed.sub(lambda name: next(s[name[1]] for s in reversed(self.scopes) if name[1] in s), operand)

    def statement(self, text: str, line: int) -> None:
        if registers := REGISTERS.match(text):
            return self.declare(registers[1], registers[2])
        if not text or text.startswith("."):
            return None
        guard = None
        if guarded := re.match(r"@(!?)(%?[\w']+)\s+", text):
            guard = (self.local(guarded[2]), guarded[1] == "!")
            text = text[guarded.end() :]
        opcode, _, rest = SPACE.sub(" ", text).partition(" ")
        operands = split_operands(self.local(rest))
        self.kernel.code.append(Instruction(opcode, operands, guard, line))
        return None


def parse(text: str) -> list[Kernel]:
    """Every kernel of a module. Lines are counted in the text as given."""
    text = re.sub(r"//[^\n]*", "", text)
    target = re.search(r"^\.target (\w+)", text, re.MULTILINE)
    assert target, "no .target"
    shared = {name: int(alignment) for alignment, name in SHARED.findall(text)}
    kernels = []
    for entry in ENTRY.finditer(text):
        kernel = Kernel(entry[1], target[1], shared=shared)
        begin = text.index("{", entry.end())
        head = text[entry.end() : begin]
        for alignment, kind, name, count in PARAMETER.findall(head):
            size = (int(count) if count else 1) * bits_of(kind) // 8
            step = int(alignment) if alignment else size
            offset = -(-kernel.parameter_bytes // step) * step
            kernel.parameters[name] = offset
            kernel.parameter_bytes = offset + size
            kernel.parameter_alignment = max(kernel.parameter_alignment, step)
        if threads := re.search(r"\.maxntid (\d+)", head):
            kernel.max_threads = int(threads[1])
        if ctas := re.search(r"\.minnctapersm (\d+)", head):
            kernel.min_ctas = int(ctas[1])
        _Body(kernel, text[begin:], 1 + text.count("\n", 0, begin)).parse()
        kernels.append(kernel)
    return kernels
