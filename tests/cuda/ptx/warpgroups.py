"""``wgmma``: what a warp has in flight, and what belongs to it until it is waited for.

A warp computes its own 16 rows. The four warps of a warpgroup must issue the same products in the same order, which is
compared. A product is computed at its issue or at its wait, from what registers and shared memory hold then."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from tests.cuda.ptx.arrays import Array
from tests.cuda.ptx.faults import PtxFault
from tests.cuda.ptx.matrices import COLUMN, DECODE, ELEMENT_BITS, ROW, fragment_a, round_sum
from tests.cuda.ptx.shared import BASE
from tests.cuda.ptx.tensor_maps import swizzle
from tests.cuda.ptx.translate import Step

if TYPE_CHECKING:
    from tests.cuda.ptx.warp import Warp

SHAPE = re.compile(r"wgmma\.mma_async\.sync\.aligned\.m64n(\d+)k(\d+)\.(f32|s32)\.(\w+)\.(\w+)")
SWIZZLE_128 = 1


@dataclass(frozen=True)
class Form:
    """What the opcode and the immediates say."""

    n: int
    kind: str
    sums: str

    @classmethod
    def of(cls, step: Step) -> Form:
        found = SHAPE.fullmatch(step.instruction.opcode)
        if not found or found[4] != found[5]:
            raise PtxFault(f"not modelled: {step.instruction.opcode}")
        n, k, sums, kind = int(found[1]), int(found[2]), found[3], found[4]
        if k * ELEMENT_BITS[kind] != 256 or n % 8 or not 8 <= n <= 256 or (sums == "s32") != (kind == "s8"):
            raise PtxFault(f"no such shape: {step.instruction.opcode}")
        if kind == "s8" and n % 16 and n != 8 and n != 24:
            raise PtxFault(f"no such shape: {step.instruction.opcode}")
        immediates = list(step.instruction.operands[4:])
        transposes = (1 if step.inputs else 2) if kind in ("f16", "bf16") else 0
        expected = ["1", "1"] * (kind != "s8") + ["0"] * transposes
        if immediates != expected:
            raise PtxFault(f"immediates {immediates} where {expected} are modelled")
        if len(step.results) != n // 2 or len(set(step.results)) != n // 2 or len(step.inputs) not in (0, 4):
            raise PtxFault(f"{len(step.results)} registers of D and {len(step.inputs)} of A")
        return cls(n, kind, sums)


@dataclass
class Product:
    """One wgmma in flight. ``a`` and ``b``: descriptors; ``words``: the shared memory it reads."""

    form: Form
    results: list[int]
    inputs: list[int]
    a: int | None
    b: int
    accumulate: bool
    words: list[Array] = field(default_factory=list)
    done: bool = False


def operand_offsets(descriptor: int, first: int, rows: int) -> Array:
    """Offsets in shared memory of the 16-byte pieces (rows, 2) of 32 bytes of K, by the matrix descriptor."""
    start, leading = (descriptor & 0x3FFF) << 4, descriptor >> 16 & 0x3FFF
    stride, base, mode = (descriptor >> 32 & 0x3FFF) << 4, descriptor >> 49 & 7, descriptor >> 62
    if descriptor & ~(0x3FFF | 0x3FFF << 16 | 0x3FFF << 32 | 7 << 49 | 3 << 62):
        raise PtxFault(f"bits of the descriptor 0x{descriptor:x} that must be zero")
    if mode != SWIZZLE_128 or base or leading > 1:
        raise PtxFault(f"descriptor 0x{descriptor:x}: only the 128-byte swizzle from a multiple of 1024 is modelled")
    if start % 128 > 96 or stride % 1024:
        raise PtxFault(f"descriptor 0x{descriptor:x}: a row leaves its 128 bytes, or groups of rows split an atom")
    row = np.arange(first, first + rows)
    address = start + row // 8 * stride + row % 8 * 128
    return swizzle(address[:, None] + np.array([0, 16])) - BASE


class Products:
    """The wgmmas of one warp."""

    def __init__(self, warp: Warp) -> None:
        self.warp = warp
        self.open: list[Product] = []
        self.groups: list[list[Product]] = []
        self.issued = 0
        self.fenced = False
        self.dirty: set[int] = set()  # registers written since the last fence
        self.owned: frozenset[int] = frozenset()  # accumulators in flight
        self.lent: frozenset[int] = frozenset()  # fragments of A in flight
        self.late = False

    def check_block(self, writes: frozenset[int], touches: frozenset[int]) -> None:
        """A run of instructions is about to touch registers."""
        self.dirty |= writes
        if not self.owned.isdisjoint(touches):
            raise PtxFault("accumulators of a wgmma are accessed before its wait")
        if not self.lent.isdisjoint(writes):
            raise PtxFault("registers of A of a wgmma change before its wait")

    def fence(self) -> None:
        self.fenced = True
        self.dirty.clear()

    def issue(self, step: Step, values: list[Array]) -> None:
        form = Form.of(step)
        if not self.fenced or not self.dirty.isdisjoint([*step.results, *step.inputs]):
            raise PtxFault("no wgmma.fence since the registers of this wgmma were written")
        flights = [p for group in [*self.groups, self.open] for p in group]
        for other in flights:
            if not set(other.results).isdisjoint(step.inputs) or not set(other.inputs).isdisjoint(step.results):
                raise PtxFault("a wgmma's registers are accumulators or A of another one in flight")
            if other.results != step.results and not set(other.results).isdisjoint(step.results):
                raise PtxFault("two wgmmas in flight share some of their accumulators")
            if other.results == step.results and other.form != form:
                raise PtxFault("wgmmas of different shapes in flight share their accumulators")
        for value in values:
            if (value != value[0]).any():
                raise PtxFault("descriptors or predicate of a wgmma differ among the lanes")
        numbers = [int(value[0]) for value in values]
        a = None if step.inputs else numbers.pop(0)
        b, accumulate = numbers[0], bool(numbers[1])
        self.compare((step.instruction.line, a, b, accumulate))
        product = Product(form, step.results, step.inputs, a, b, accumulate)
        if not flights:
            self.late = not self.warp.machine.early()
        self.open.append(product)
        self.own()
        shared = self.warp.cta.shared
        for offsets in (self.a_offsets(product), operand_offsets(b, 0, form.n)):
            if offsets is not None:
                words = shared.matrix_words(offsets)
                shared.reading[words] += 1
                product.words.append(words)
        if not self.late:
            self.compute(product)

    def compare(self, issued: tuple[int, int | None, int, bool]) -> None:
        """All warps of a warpgroup issue the same."""
        sequence = self.warp.cta.sequences.setdefault(self.warp.number // 4, [])
        if self.issued == len(sequence):
            sequence.append(issued)
        elif sequence[self.issued] != issued:
            raise PtxFault(f"the warps of a warpgroup issue different wgmmas: {issued} and {sequence[self.issued]}")
        self.issued += 1

    def a_offsets(self, product: Product) -> Array | None:
        return None if product.a is None else operand_offsets(product.a, self.warp.number % 4 * 16, 16)

    def own(self) -> None:
        flights = [p for group in [*self.groups, self.open] for p in group]
        self.owned = frozenset(slot for p in flights for slot in p.results)
        self.lent = frozenset(slot for p in flights for slot in p.inputs)

    def matrix(self, offsets: Array, kind: str) -> Array:
        raw = self.warp.cta.shared.bytes[offsets[:, :, None] + np.arange(16)].reshape(len(offsets), 32)
        return DECODE[kind](raw if ELEMENT_BITS[kind] == 8 else np.ascontiguousarray(raw).view(np.uint16))

    def compute(self, product: Product) -> None:
        form, registers = product.form, self.warp.registers
        offsets = self.a_offsets(product)
        if offsets is None:
            a = fragment_a([registers[slot] for slot in product.inputs], form.kind)
        else:
            a = self.matrix(offsets, form.kind)
        with np.errstate(all="ignore"):
            sums = a @ self.matrix(operand_offsets(product.b, 0, form.n), form.kind).T
        for i, slot in enumerate(product.results):
            part = sums[ROW[i % 4], COLUMN[i % 4] + i // 4 * 8]
            before = registers[slot] if product.accumulate else np.zeros(32, np.uint32)
            registers[slot] = round_sum(part, before, form.sums)
        product.done = True

    def commit(self) -> None:
        self.groups.append(self.open)
        self.open = []

    def wait(self, pending: int) -> None:
        while len(self.groups) > pending:
            for product in self.groups.pop(0):
                if not product.done:
                    self.compute(product)
                for words in product.words:
                    self.warp.cta.shared.reading[words] -= 1
        self.own()
