"""Instructions that concern one lane at a time, as Python expressions: arithmetic, logic, comparisons, conversions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.cuda.ptx import numbers
from tests.cuda.ptx.arrays import Array
from tests.cuda.ptx.operands import PARAMETER_WINDOW, Operands, numpy_name
from tests.cuda.ptx.syntax import Instruction, bits_of

Results = list[tuple[int, str]]  # slots and expressions
Operation = Callable[[Operands, Instruction], Results]
OPERATIONS: dict[str, Operation] = {}


def operation(*names: str) -> Callable[[Operation], Operation]:
    def register(function: Operation) -> Operation:
        OPERATIONS.update(dict.fromkeys(names, function))
        return function

    return register


def divide(a: Array, b: Array) -> Array:
    """Integer division toward zero. By zero every bit is set."""
    safe = np.where(b == 0, b.dtype.type(1), b)
    if a.dtype.kind == "u":
        quotient = a // safe
    else:
        quotient = np.abs(a) // np.abs(safe)
        quotient = np.where((a < 0) != (safe < 0), -quotient, quotient)
    return np.where(b == 0, b.dtype.type(-1) if a.dtype.kind == "i" else ~b.dtype.type(0), quotient).astype(a.dtype)


def shift(value: Array, by: Array, left: bool) -> Array:
    """Beyond the width: zeros, or the sign."""
    bits = value.dtype.itemsize * 8
    amount = np.minimum(by, by.dtype.type(bits - 1)).astype(value.dtype)
    out = value << amount if left else value >> amount
    beyond = by >= bits
    if not beyond.any():
        return out
    return np.where(beyond, value.dtype.type(0) if left or value.dtype.kind == "u" else out, out)


BINARY = {"add": "+", "sub": "-", "and": "&", "or": "|", "xor": "^"}


@operation("add", "sub", "and", "or", "xor")
def binary(o: Operands, i: Instruction) -> Results:
    kind = i.parts[-1]
    assert not {"sat", "cc", "ftz", "rz", "rm", "rp"} & set(i.parts), i
    if kind in ("f16x2", "bf16x2"):
        a, b = (o.value(x, "u32") for x in i.operands[1:3])
        return [o.result(i.operands[0], f"pairs({kind[:-2]!r}, {i.parts[0]!r}, {a}, {b})", "u32")]
    unsigned = kind if kind[0] == "f" or kind == "pred" else f"u{bits_of(kind)}"
    a, b = (o.value(x, unsigned) for x in i.operands[1:3])
    return [o.result(i.operands[0], f"({a} {BINARY[i.parts[0]]} {b})", unsigned)]


@operation("mul", "mad")
def multiply(o: Operands, i: Instruction) -> Results:
    kind, parts = i.parts[-1], i.parts
    if kind[0] == "f" or kind == "bf16x2":
        assert parts[0] == "mul"
        if kind.endswith("x2"):
            a, b = (o.value(x, "u32") for x in i.operands[1:3])
            return [o.result(i.operands[0], f"pairs({kind[:-2]!r}, 'mul', {a}, {b})", "u32")]
        a, b = (o.value(x, kind) for x in i.operands[1:3])
        return [o.result(i.operands[0], f"({a} * {b})", kind)]
    width = bits_of(kind)
    if "wide" in parts:
        wide = numpy_name(f"{kind[0]}{2 * width}")
        a, b = (f"{o.value(x, kind)}.astype({wide})" for x in i.operands[1:3])
        text, kind = f"({a} * {b})", f"{kind[0]}{2 * width}"
    elif "hi" in parts:
        assert width == 32
        wide = "i8" if kind[0] == "s" else "u8"
        a, b = (f"{o.value(x, kind)}.astype({wide})" for x in i.operands[1:3])
        text, kind = f"(({a} * {b}) >> {wide}(32)).astype(u4)", "u32"
    else:
        assert "lo" in parts, i
        kind = f"u{width}"
        a, b = (o.value(x, kind) for x in i.operands[1:3])
        text = f"({a} * {b})"
    if parts[0] == "mad":
        text = f"({text} + {o.value(i.operands[3], kind)})"
    return [o.result(i.operands[0], text, kind)]


@operation("fma")
def fused(o: Operands, i: Instruction) -> Results:
    kind = i.parts[-1]
    assert i.parts[1:] == ["rn", kind], i
    if kind == "f32":
        a, b, c = (o.value(x, "f32") for x in i.operands[1:])
        return [o.result(i.operands[0], f"fma_float32({a}, {b}, {c})", "f32")]
    assert kind in ("f16x2", "bf16x2"), i
    a, b, c = (o.value(x, "u32") for x in i.operands[1:])
    return [o.result(i.operands[0], f"pairs({kind[:-2]!r}, 'fma', {a}, {b}, {c})", "u32")]


@operation("div")
def division(o: Operands, i: Instruction) -> Results:
    kind = i.parts[-1]
    a, b = (o.value(x, kind) for x in i.operands[1:3])
    if kind == "f32":
        assert i.parts[1] == "rn", i
        return [o.result(i.operands[0], f"({a} / {b})", kind)]
    return [o.result(i.operands[0], f"divide({a}, {b})", kind)]


@operation("rcp")
def reciprocal(o: Operands, i: Instruction) -> Results:
    assert i.parts[1:] == ["rn", "f32"], i
    return [o.result(i.operands[0], f"(f4(1) / {o.value(i.operands[1], 'f32')})", "f32")]


@operation("min", "max")
def extreme(o: Operands, i: Instruction) -> Results:
    kind = i.parts[-1]
    assert len(i.parts) == 2, i
    name = {"min": "minimum", "max": "maximum"}[i.parts[0]]
    # Of a number and a NaN the number.
    name = f"f{i.parts[0]}" if kind[0] == "f" else name
    a, b = (o.value(x, kind) for x in i.operands[1:3])
    return [o.result(i.operands[0], f"{name}({a}, {b})", kind)]


@operation("abs", "neg")
def sign(o: Operands, i: Instruction) -> Results:
    kind = i.parts[-1]
    a = o.value(i.operands[1], kind)
    return [o.result(i.operands[0], f"abs({a})" if i.parts[0] == "abs" else f"(-{a})", kind)]


@operation("not")
def negate(o: Operands, i: Instruction) -> Results:
    kind = i.parts[-1]
    return [o.result(i.operands[0], f"(~{o.value(i.operands[1], kind)})", kind)]


@operation("shl", "shr")
def shifts(o: Operands, i: Instruction) -> Results:
    kind = i.parts[-1] if i.parts[0] == "shr" else f"u{bits_of(i.parts[-1])}"
    a, b = o.value(i.operands[1], kind), o.value(i.operands[2], "u32")
    return [o.result(i.operands[0], f"shift({a}, {b}, {i.parts[0] == 'shl'})", kind)]


@operation("lop3")
def logic(o: Operands, i: Instruction) -> Results:
    a, b, c = (o.value(x, "u32") for x in i.operands[1:4])
    table = int(i.operands[4], 0)
    known = {0xEA: f"(({a} & {b}) | {c})", 0x6A: f"(({a} & {b}) ^ {c})"}
    return [o.result(i.operands[0], known.get(table, f"logic({a}, {b}, {c}, {table})"), "u32")]


@operation("prmt")
def permute(o: Operands, i: Instruction) -> Results:
    assert i.parts == ["prmt", "b32"], i
    a, b, c = (o.value(x, "u32") for x in i.operands[1:])
    return [o.result(i.operands[0], f"permute_bytes({a}, {b}, {c})", "u32")]


@operation("bfi")
def insert(o: Operands, i: Instruction) -> Results:
    a, b = (o.value(x, "u32") for x in i.operands[1:3])
    at, length = (int(x, 0) for x in i.operands[3:5])
    mask = ((1 << length) - 1) << at & 0xFFFFFFFF
    return [o.result(i.operands[0], f"((({a} << u4({at})) & u4({mask})) | ({b} & u4({~mask & 0xFFFFFFFF})))", "u32")]


COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
UNORDERED = {"equ": "==", "neu": "!=", "ltu": "<", "leu": "<=", "gtu": ">", "geu": ">="}


@operation("setp")
def compare(o: Operands, i: Instruction) -> Results:
    comparison, kind = i.parts[1], i.parts[-1]
    assert len(i.parts) == 3, i
    assert "|" not in i.operands[0], i
    a, b = (o.value(x, kind) for x in i.operands[1:3])
    if comparison in ("nan", "num"):
        text = f"(isnan({a}) | isnan({b}))"
        text = text if comparison == "nan" else f"(~{text})"
    elif kind[0] == "f" and comparison in UNORDERED:
        text = f"(({a} {UNORDERED[comparison]} {b}) | isnan({a}) | isnan({b}))"
    elif kind[0] == "f" and comparison == "ne":
        text = f"(({a} != {b}) & ~isnan({a}) & ~isnan({b}))"
    else:
        text = f"({a} {COMPARE[comparison]} {b})"
    return [o.result(i.operands[0], text, "pred")]


@operation("selp")
def select(o: Operands, i: Instruction) -> Results:
    kind = f"u{bits_of(i.parts[-1])}"
    a, b = (o.value(x, kind) for x in i.operands[1:3])
    return [o.result(i.operands[0], f"where({o.value(i.operands[3], 'pred')}, {a}, {b})", kind)]


@operation("mov")
def move(o: Operands, i: Instruction) -> Results:
    kind, (to, source) = i.parts[-1], i.operands
    kind = kind if kind == "pred" else f"u{bits_of(kind)}"
    name, half = numpy_name(kind), bits_of(kind) // 2
    if source.startswith("{"):
        low, high = (f"{o.value(x, f'u{half}')}.astype({name})" for x in o.vector(source))
        return [o.result(to, f"({low} | ({high} << {name}({half})))", kind)]
    if to.startswith("{"):
        text = o.value(source, kind)
        parts = zip(o.vector(to), (text, f"({text} >> {name}({half}))"), strict=True)
        return [o.result(x, f"{part}.astype(u{half // 8})", f"u{half}") for x, part in parts if x != "_"]
    return [o.result(to, o.value(source, kind), kind)]


@operation("cvta")
def convert_address(o: Operands, i: Instruction) -> Results:
    text = o.value(i.operands[1], "u64")
    if "param" in i.parts:
        text = f"({text} + {o.constant(PARAMETER_WINDOW, 64)})"
    else:
        assert "global" in i.parts, i
    return [o.result(i.operands[0], text, "u64")]


@operation("cvt")
def convert(o: Operands, i: Instruction) -> Results:
    parts = i.parts[1:]
    if parts[-2:] == ["e4m3x2", "f32"]:
        assert parts[:2] == ["rn", "satfinite"], i
        high, low = (f"e4m3_bits({o.value(x, 'f32')})" for x in i.operands[1:])
        return [o.result(i.operands[0], f"({low} | {high} << u4(8)).astype(u2)", "u16")]
    if parts[-2:] in (["f16x2", "f32"], ["bf16x2", "f32"]):
        assert parts[0] == "rn", i
        assert len(parts) == 3, i
        name = {"f16x2": "half_bits", "bf16x2": "bfloat_bits"}[parts[-2]]
        high, low = (f"{name}({o.value(x, 'f32')}.astype(f8)).astype(u4)" for x in i.operands[1:])
        return [o.result(i.operands[0], f"({low} | {high} << u4(16))", "u32")]
    to, source = parts[-2], parts[-1]
    rounding = parts[0] if len(parts) == 3 else ""
    text = o.value(i.operands[1], source)
    if source == "f16" and to == "f32":
        text = f"half_value({text}).astype(f4)"
    elif source == "f32" and to == "f16":
        assert rounding == "rn", i
        text = f"half_bits({text}.astype(f8))"
    elif source == "f32" and to[0] in "su":
        assert rounding == "rni", i
        bits = bits_of(to)
        low, high = ("0", str(2**bits - 1)) if to[0] == "u" else (str(-(2 ** (bits - 1))), str(2 ** (bits - 1) - 1))
        text = f"to_integer({text}, {low}, {high}).astype({numpy_name(to)})"
    elif to[0] == "f":
        assert (source[0], rounding, to) in (("s", "rn", "f32"), ("u", "rn", "f32")), i
        text = f"{text}.astype(f4)"
    else:
        assert not rounding, i
        text = f"{text}.astype({numpy_name(to)})"
    return [o.result(i.operands[0], text, to)]


NAMES = {
    "u1": np.uint8, "u2": np.uint16, "u4": np.uint32, "u8": np.uint64, "i1": np.int8, "i2": np.int16, "i4": np.int32,
    "i8": np.int64, "f4": np.float32, "f8": np.float64, "bool_": np.bool_, "where": np.where, "minimum": np.minimum,
    "maximum": np.maximum, "fmin": np.fmin, "fmax": np.fmax, "abs": np.abs, "isnan": np.isnan, "divide": divide,
    "shift": shift, **{name: getattr(numbers, name) for name in (
        "pairs", "fma_float32", "logic", "permute_bytes", "half_value", "half_bits", "bfloat_bits", "e4m3_bits",
        "to_integer")},
}  # fmt: skip
