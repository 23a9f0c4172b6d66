"""The number formats of PTX on numpy arrays: FP16, BF16, E4M3, one rounding per operation.

Registers are unsigned integers; a function takes and returns the bits it names, FP32 as float32.
"""

from __future__ import annotations

import numpy as np

from tests.cuda.ptx.arrays import Array

F4, F8, U1, U2, U4, U8, I4 = np.float32, np.float64, np.uint8, np.uint16, np.uint32, np.uint64, np.int32


def odd_float32(exact: Array) -> Array:
    """FP64 to FP32 bits that keep, in the last bit, whether anything was cut off: a later rounding to fewer bits is
    then the only one."""
    near = exact.astype(F4)
    back = near.astype(F8)
    beyond = np.abs(back) > np.abs(exact)
    bits = near.view(U4) - beyond.astype(U4)
    inexact = back != exact
    finite = np.isfinite(exact)
    return np.where(finite, bits | (inexact & finite).astype(U4), near.view(U4))


def fma_float32(a: Array, b: Array, c: Array) -> Array:
    """a b + c of float32, rounded once. The product is exact in FP64; a sum that FP64 rounds to halfway between two
    FP32 values is moved to the side where the exact sum lies."""
    with np.errstate(all="ignore"):
        product, addend = a.astype(F8) * b.astype(F8), c.astype(F8)
        total = product + addend
        bits = total.view(U8)
        halfway = (bits & U8(0x1FFFFFFF)) == U8(0x10000000)
        if halfway.any():
            rest = total - product
            error = (product - (total - rest)) + (addend - rest)
            toward = np.where(error > 0, np.inf, -np.inf)
            total = np.where(halfway & (error != 0), np.nextafter(total, toward), total)
        return total.astype(F4)


def half_value(bits: Array) -> Array:
    return bits.astype(U2).view(np.float16).astype(F8)


def half_bits(value: Array) -> Array:
    with np.errstate(all="ignore"):
        return value.astype(np.float16).view(U2)


def bfloat_value(bits: Array) -> Array:
    return (bits.astype(U4) << U4(16)).view(F4).astype(F8)


def bfloat_of_float32(bits: Array) -> Array:
    """The bits of FP32, or of :func:`odd_float32`, to BF16: nearest, ties to even; NaN to 0x7FFF."""
    rounded = (bits + U4(0x7FFF) + ((bits >> U4(16)) & U4(1))) >> U4(16)
    return np.where((bits & U4(0x7FFFFFFF)) > U4(0x7F800000), U4(0x7FFF), rounded).astype(U2)


def bfloat_bits(value: Array) -> Array:
    """FP64 to BF16."""
    with np.errstate(all="ignore"):
        return bfloat_of_float32(odd_float32(value))


VALUE = {"f16": half_value, "bf16": bfloat_value}
ROUND = {"f16": half_bits, "bf16": bfloat_bits}


def pairs(kind: str, operation: str, *operands: Array) -> Array:
    """``fma``, ``mul``, ``add``, ``sub`` of two packed 16-bit floats, each rounded once."""
    halves = []
    for shift in (0, 16):
        values = [VALUE[kind]((operand >> U4(shift)) & U4(0xFFFF)) for operand in operands]
        with np.errstate(all="ignore"):
            if operation == "fma":
                result = values[0] * values[1] + values[2]
            elif operation == "mul":
                result = values[0] * values[1]
            else:
                result = values[0] + values[1] if operation == "add" else values[0] - values[1]
        halves.append(ROUND[kind](result).astype(U4))
    return halves[0] | halves[1] << U4(16)


def _e4m3_table() -> Array:
    codes = np.arange(256)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    value = np.where(exponent > 0, (8.0 + mantissa) * 2.0 ** (exponent - 10.0), mantissa * 2.0**-9)
    value[(codes & 0x7F) == 0x7F] = np.nan
    return np.where(codes & 0x80, -value, value)


E4M3 = _e4m3_table()
_MAGNITUDES = E4M3[:127]
_MIDDLES = (_MAGNITUDES[:-1] + _MAGNITUDES[1:]) / 2


def e4m3_bits(value: Array) -> Array:
    """float32 to E4M3: nearest, ties to even, saturating; NaN to 0x7F."""
    size = np.abs(value).astype(F8)
    below, upto = np.searchsorted(_MIDDLES, size, "left"), np.searchsorted(_MIDDLES, size, "right")
    code = np.where((below != upto) & (below % 2 == 0), below, upto)
    code = np.where(np.isnan(value), 0x7F, code)
    return (code | np.where(np.signbit(value), 0x80, 0)).astype(U4)


def to_integer(value: Array, low: int, high: int) -> Array:
    """float32 to an integer: nearest, ties to even, saturating; NaN to 0."""
    rounded = np.clip(np.rint(np.nan_to_num(value.astype(F8), nan=0.0)), low, high)
    return rounded.astype(np.int64)


def permute_bytes(low: Array, high: Array, selector: Array) -> Array:
    """``prmt.b32`` in its default mode: each nibble picks one of 8 bytes, bit 3 spreads that byte's sign."""
    source = low.astype(U8) | high.astype(U8) << U8(32)
    out = np.zeros_like(low)
    for byte in range(4):
        nibble = (selector >> U4(4 * byte)) & U4(15)
        picked = (source >> (nibble & U4(7)).astype(U8) * U8(8)).astype(U4) & U4(0xFF)
        picked = np.where(nibble & U4(8), np.where(picked & U4(0x80), U4(0xFF), U4(0)), picked)
        out |= picked << U4(8 * byte)
    return out


def logic(a: Array, b: Array, c: Array, table: int) -> Array:
    """``lop3.b32``: bit 4a + 2b + c of the table."""
    out = np.zeros_like(a)
    for row in range(8):
        if table >> row & 1:
            out |= (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
    return out
