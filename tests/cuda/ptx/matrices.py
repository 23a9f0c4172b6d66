"""The matrix instructions of a warp: ``ldmatrix`` and ``mma.sync``, by the fragment layouts of the PTX ISA."""

from __future__ import annotations

import numpy as np

from tests.cuda.ptx import numbers
from tests.cuda.ptx.arrays import Array
from tests.cuda.ptx.faults import PtxFault

LANE = np.arange(32)
GROUP, THREAD = LANE >> 2, LANE & 3  # PTX: groupID and threadID_in_group
DECODE = {
    "f16": numbers.half_value,
    "bf16": numbers.bfloat_value,
    "e4m3": lambda bits: numbers.E4M3[bits.astype(np.intp)],
    "s8": lambda bits: bits.astype(np.uint8).view(np.int8).astype(np.float64),
}
ELEMENT_BITS = {"f16": 16, "bf16": 16, "e4m3": 8, "s8": 8}


def elements(registers: list[Array], kind: str) -> Array:
    """(registers, lanes, elements per register) as FP64."""
    words = np.stack(registers)
    bits = ELEMENT_BITS[kind]
    parts = [(words >> np.uint32(bits * i)) & np.uint32((1 << bits) - 1) for i in range(32 // bits)]
    return DECODE[kind](np.stack(parts, axis=-1))


def fragment_a(registers: list[Array], kind: str) -> Array:
    """A (16, K) from the four registers of every lane: registers 0 and 2 hold row groupID, 1 and 3 row groupID + 8;
    registers 2 and 3 the second half of the columns."""
    values = elements(registers, kind)
    each = values.shape[-1]
    a = np.empty((16, 8 * each))
    for register in range(4):
        for i in range(each):
            a[GROUP + 8 * (register & 1), THREAD * each + i + 4 * each * (register >> 1)] = values[register, :, i]
    return a


def fragment_b(registers: list[Array], kind: str) -> Array:
    """B (K, 8): a lane holds neighbouring rows of column groupID."""
    values = elements(registers, kind)
    each = values.shape[-1]
    b = np.empty((8 * each, 8))
    for register in range(2):
        for i in range(each):
            b[THREAD * each + i + 4 * each * register, GROUP] = values[register, :, i]
    return b


ROW = [GROUP + 8 * (register >> 1) for register in range(4)]
COLUMN = [2 * THREAD + (register & 1) for register in range(4)]


def round_sum(products: Array, addend: Array, kind: str) -> Array:
    """The bits of ``products + addend``: FP32 rounded once, or INT32."""
    if kind == "s32":
        return (products.astype(np.int64) + addend.view(np.int32)).astype(np.int32).view(np.uint32)
    with np.errstate(all="ignore"):
        return (products + addend.view(np.float32).astype(np.float64)).astype(np.float32).view(np.uint32)


SHAPES = {"f16": "m16n8k16", "bf16": "m16n8k16", "e4m3": "m16n8k32", "s8": "m16n8k32"}


def mma(opcode: str, a: list[Array], b: list[Array], c: list[Array]) -> list[Array]:
    parts = opcode.split(".")
    assert parts[:3] == ["mma", "sync", "aligned"], opcode
    shape, layout_a, layout_b, kind_d, kind_a, kind_b, kind_c = parts[3:]
    assert (layout_a, layout_b) == ("row", "col"), opcode
    assert kind_a == kind_b, opcode
    assert shape == SHAPES[kind_a], opcode
    assert kind_c == kind_d == ("s32" if kind_a == "s8" else "f32"), opcode
    with np.errstate(all="ignore"):
        product = fragment_a(a, kind_a) @ fragment_b(b, kind_b)
    return [round_sum(product[ROW[i], COLUMN[i]], c[i], kind_d) for i in range(4)]


def matrix_rows(opcode: str) -> int:
    """How many lanes of an ldmatrix give row addresses."""
    parts = opcode.split(".")
    if parts[:4] != ["ldmatrix", "sync", "aligned", "m8n8"] or parts[-1] != "b16" or "trans" in parts:
        raise PtxFault(f"not modelled: {opcode}")
    return {"x1": 8, "x2": 16, "x4": 32}[parts[4]]


def spread(rows: list[Array]) -> list[Array]:
    """What an ldmatrix gives each lane. ``rows``: the four 32-bit words of the row of each address."""
    words = np.stack(rows, axis=-1)
    return [words[8 * matrix + GROUP, THREAD] for matrix in range(len(words) // 8)]
