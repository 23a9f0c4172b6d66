"""Kernels to Python: straight runs of instructions become functions, and what involves other threads, or the order of
events, stands between them as a step of its own (:class:`Step`)."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.cuda.ptx.arrays import Array
from tests.cuda.ptx.operands import Operands, touched
from tests.cuda.ptx.operations import NAMES, OPERATIONS
from tests.cuda.ptx.syntax import Instruction, Kernel, bits_of

# Instructions that are steps: the machine decides when they happen.
STEPS = {"bar", "barrier", "mbarrier", "cp", "fence", "griddepcontrol", "setmaxnreg", "wgmma", "shfl", "prefetch"}
ENDS = {"bra", "ret", "exit"}
Function = Callable[..., Any]


@dataclass
class Step:
    """An instruction for the machine: ``values(R, S, K)`` gives its register operands, ``results`` its destinations."""

    instruction: Instruction
    values: Function
    results: list[int]
    inputs: list[int] = field(default_factory=list)


@dataclass
class Block:
    """Instructions [start, end) without a branch or a step; then ``step``, or ``branch`` to ``target``, or the end."""

    start: int
    end: int
    step: Step | None = None
    branch: Instruction | None = None
    guard: tuple[int, bool] | None = None  # of the branch or step
    target: int = -1
    leaves: bool = False
    writes: frozenset[int] = frozenset()
    touches: frozenset[int] = frozenset()
    functions: dict[bool, Function] = field(default_factory=dict)


class Program:
    """A translated kernel."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.operands = Operands(kernel)
        self.blocks: dict[int, Block] = {}
        self.has_wgmma = any(i.opcode.startswith("wgmma.mma") for i in kernel.code)
        for instruction in kernel.code:
            touched(self.operands, instruction)  # every register has its slot
        starts = {0, *kernel.labels.values()}
        for at, instruction in enumerate(kernel.code):
            name = instruction.parts[0]
            if name in STEPS:
                starts |= {at, at + 1}
            elif name in ENDS:
                starts.add(at + 1)
        self.starts = sorted(start for start in starts if start < len(kernel.code))
        for number, start in enumerate(self.starts):
            end = self.starts[number + 1] if number + 1 < len(self.starts) else len(kernel.code)
            self.blocks[start] = self.block(start, end)

    def block(self, start: int, end: int) -> Block:
        last = self.kernel.code[end - 1]
        name = last.parts[0]
        if name in STEPS:
            return Block(start, start, step=self.step(last), guard=self.guard(last))
        block = Block(start, end)
        if name in ENDS:
            block.end, block.branch, block.guard = end - 1, last, self.guard(last)
            block.leaves = name != "bra"
            if name == "bra":
                block.target = self.kernel.labels[last.operands[0]]
        inside = self.kernel.code[start : block.end]
        if self.has_wgmma:
            block.writes = frozenset(slot for i in inside for slot in self.written(i))
            block.touches = frozenset(slot for i in self.kernel.code[start:end] for slot in touched(self.operands, i))
        return block

    def guard(self, instruction: Instruction) -> tuple[int, bool] | None:
        if not instruction.guard:
            return None
        return self.operands.slot(instruction.guard[0]), instruction.guard[1]

    def written(self, instruction: Instruction) -> list[int]:
        if instruction.parts[0] in ("st", "bar"):
            return []
        return self.operands.registers_of(instruction.operands[0]) if instruction.operands else []

    def step(self, i: Instruction) -> Step:
        """Operands in order; a bracket gives its registers' sum, a vector each of its elements."""
        o, texts = self.operands, []
        for operand in i.operands:
            if i.parts[0] in ("shfl", "mbarrier") and re.fullmatch(r"-?\w+", operand) and operand[-1].isdigit():
                texts.append(o.constant(int(operand, 0), 32))
            elif operand.startswith("["):
                # [address] or [map, {x, y}]
                inside = operand[1:-1]
                first, _, rest = inside.partition(",")
                texts.append(o.address(f"[{first}]", o.address_bits(f"[{first}]")))
                texts += [o.value(x, "u32") for x in o.vector(rest)] if rest else []
            elif i.opcode.startswith("wgmma.mma") and operand.startswith("{"):
                continue
            elif o.is_register(operand.lstrip("!")):
                plain = operand.lstrip("!")
                kind = "pred" if o.kernel.bits(plain) == 1 else f"u{o.kernel.bits(plain)}"
                texts.append(o.value(operand, kind))
        values = eval(f"lambda R, S, K: [{', '.join(texts)}]", dict(NAMES))
        results, inputs = [], []
        if i.parts[0] in ("shfl", "mbarrier"):
            results = [s for name in i.operands[0].split("|") for s in o.registers_of(name) if i.operands[0][0] != "["]
        if i.opcode.startswith("wgmma.mma"):
            results = [o.slot(name) for name in o.vector(i.operands[0])]
            inputs = [o.slot(name) for name in o.vector(i.operands[1])] if i.operands[1].startswith("{") else []
        return Step(i, values, results, inputs)

    def function(self, block: Block, full: bool) -> Function:
        """The function of a block, for a whole warp or for some of its lanes."""
        if full not in block.functions:
            lines = []
            for at in range(block.start, block.end):
                lines += self.lines(at, self.kernel.code[at], full)
            text = "def run(w, R, S, K, M):\n" + "\n".join(f"    {line}" for line in lines or ["pass"])
            scope: dict[str, Any] = dict(NAMES)
            exec(text, scope)  # the text is made of the templates of this package
            block.functions[full] = scope["run"]
        return block.functions[full]

    def lines(self, at: int, i: Instruction, full: bool) -> list[str]:
        mask = "M"
        before: list[str] = []
        if i.guard:
            mask, full = "G", False
            before = [f"G = M & {'~' if i.guard[1] else ''}R[{self.operands.slot(i.guard[0])}]"]
        if i.parts[0] in ("ld", "st", "ldmatrix", "mma", "mapa"):
            statements, results = self.runtime(at, i, mask)
        else:
            assert i.parts[0] in OPERATIONS, f"unknown instruction: {i}"
            statements, results = [], OPERATIONS[i.parts[0]](self.operands, i)
        assigned = [f"R[{slot}] = {text if full else f'where({mask}, {text}, R[{slot}])'}" for slot, text in results]
        if len(results) > 1:  # destinations may be sources of the same instruction
            names = [f"t{number}" for number in range(len(results))]
            statements += [f"{name} = {text}" for name, (_, text) in zip(names, results, strict=True)]
            assigned = [
                f"R[{slot}] = {name if full else f'where({mask}, {name}, R[{slot}])'}"
                for name, (slot, _) in zip(names, results, strict=True)
            ]
        body = [f"w.at = {at}", *statements, *assigned] if statements else assigned
        if not i.guard:
            return body
        return [*before, "if G.any():", *(f"    {line}" for line in body)]

    def runtime(self, at: int, i: Instruction, mask: str) -> tuple[list[str], list[tuple[int, str]]]:
        o, parts = self.operands, i.parts
        if parts[0] == "mapa":
            a, rank = (o.value(x, "u32") for x in i.operands[1:3])
            return [f"v = w.map_address({a}, {rank})"], [o.result(i.operands[0], "v", "u32")]
        if parts[0] in ("ldmatrix", "mma"):
            shapes = {"ldmatrix": 1, "mma": 3}
            sources = ", ".join(
                f"[{', '.join(o.value(x, 'u32') for x in o.vector(operand))}]"
                if operand.startswith("{")
                else o.address(operand, 32)
                for operand in i.operands[1 : 1 + shapes[parts[0]]]
            )
            results = [o.result(x, f"v[{n}]", "u32") for n, x in enumerate(o.vector(i.operands[0]))]
            return [f"v = w.{parts[0]}({mask}, {i.opcode!r}, {sources})"], results
        space = next(part for part in parts if part in ("param", "global", "shared", "shared::cluster", "shared::cta"))
        kind = parts[-1]
        width, count = bits_of(kind) // 8, next((int(p[1]) for p in parts if re.fullmatch(r"v[24]", p)), 1)
        register_count = len(o.vector(i.operands[1 if parts[0] == "st" else 0]))
        assert register_count == count, f"{register_count} registers: {i}"
        where = o.address(i.operands[0 if parts[0] == "st" else 1], 64 if space in ("param", "global") else 32)
        space = {"shared::cta": "shared", "shared::cluster": "cluster"}.get(space, space)
        if parts[0] == "st":
            values = ", ".join(o.value(x, f"u{bits_of(kind)}") for x in o.vector(i.operands[1]))
            return [f"w.store_{space}({mask}, {where}, {width}, [{values}])"], []
        extra = ", True" if "nc" in parts else ""
        load = f"v = w.load_{space}({mask}, {where}, {width}, {count}{extra})"
        text = "v[{}]" if kind[0] not in "sf" else f"v[{{}}].view({kind[0].replace('s', 'i')}{width})"
        typed = f"s{bits_of(kind)}" if kind[0] == "s" else f"u{bits_of(kind)}" if kind[0] != "f" else kind
        return [load], [o.result(x, text.format(n), typed) for n, x in enumerate(o.vector(i.operands[0]))]


def all_lanes() -> Array:
    return np.ones(32, bool)
