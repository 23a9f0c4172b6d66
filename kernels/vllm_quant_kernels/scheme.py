"""What a quantized weight is, apart from how a checkpoint stores it and which kernel runs it. No torch.

    WeightScheme = value type x grouping x scale type x zero point x activation x transform

The terms are the field's: ``group_size`` counts input features per scale, ``PER_CHANNEL`` is one scale per output
channel and ``PER_TENSOR`` one scale for the whole tensor. N is out_features, K is in_features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

PER_CHANNEL = -1
PER_TENSOR = 0


@dataclass(frozen=True)
class Int:
    """Codes are integers of ``bits`` bits, 1 to 8."""

    bits: int

    @property
    def name(self) -> str:
        return f"INT{self.bits}"


@dataclass(frozen=True)
class Float:
    """Codes are small floats: one sign bit, ``exponent`` and ``mantissa`` bits (FP8 E4M3 and E5M2, FP6, FP4 E2M1)."""

    exponent: int
    mantissa: int

    @property
    def bits(self) -> int:
        return 1 + self.exponent + self.mantissa

    @property
    def name(self) -> str:
        return "FP8" if self == E4M3 else f"FP{self.bits} E{self.exponent}M{self.mantissa}"


@dataclass(frozen=True)
class Codebook:
    """Codes of ``bits`` bits index a table of values.

    Attributes:
        table: name of a fixed table (``nf4``, ``iq4_nl``), or None where the weight carries its own.
        scope: whom one table serves: every weight, this tensor, or one output channel (SqueezeLLM).
    """

    bits: int
    table: str | None = None
    scope: Literal["fixed", "tensor", "channel"] = "fixed"

    @property
    def name(self) -> str:
        return self.table.upper() if self.table else f"codebook {self.bits}-bit per {self.scope}"


@dataclass(frozen=True)
class VectorCodebook:
    """One code of ``code_bits`` bits stands for ``dim`` weights (AQLM, QuIP# E8P, IQ2 and IQ3 grids, trellis)."""

    dim: int
    code_bits: int
    table: str

    @property
    def bits(self) -> float:
        return self.code_bits / self.dim

    @property
    def name(self) -> str:
        return f"{self.table} {self.bits:g}-bit"


ValueType = Int | Float | Codebook | VectorCodebook

E4M3 = Float(4, 3)
E5M2 = Float(5, 2)
E2M1 = Float(2, 1)


@dataclass(frozen=True)
class ScaleType:
    """How scales are stored.

    Attributes:
        dtype: of one scale: ``float16``, ``bfloat16``, ``float32``, ``e8m0``, ``e4m3``, ``int6``, ...
            ``float`` is whichever of the first three the checkpoint brings.
        per_super: first-level scales per super-scale (k-quants, double quantization), 0 for one per tensor, None for
            a single level.
        super_dtype: of the second level.
    """

    dtype: str = "float"
    per_super: int | None = None
    super_dtype: str = "float32"


FLOAT_SCALES = ScaleType()


@dataclass(frozen=True)
class ActivationScheme:
    """How activations are quantized before the GEMM (W8A8). Absent means 16-bit activations."""

    value: ValueType
    strategy: Literal["token", "tensor", "group"] = "token"
    dynamic: bool = True
    symmetric: bool = True
    group_size: int | None = None

    @property
    def bits(self) -> float:
        return self.value.bits


@dataclass(frozen=True)
class WeightScheme:
    """The quantization of one linear module's weight.

    Attributes:
        value: what a code means.
        group_size: input features per scale; ``PER_CHANNEL`` or ``PER_TENSOR``.
        block: (N, K) of one scale for block-wise schemes, else None.
        symmetric: True when the zero point is the middle code and not stored.
        act_order: True when ``g_idx`` permutes the input features over groups.
        scale: how scales are stored.
        activation: activation quantization, or None for weight-only.
        transform: name of the transform of input or output (Hadamard, rotations), None for none.
    """

    value: ValueType = Int(4)
    group_size: int = 128
    block: tuple[int, int] | None = None
    symmetric: bool = True
    act_order: bool = False
    scale: ScaleType = FLOAT_SCALES
    activation: ActivationScheme | None = None
    transform: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values; ``from_json`` is its inverse."""
        act = self.activation
        return {
            **{f.name: getattr(self, f.name) for f in fields(WeightScheme)},
            "value": _value_to_json(self.value),
            "scale": asdict(self.scale),
            "activation": None if act is None else {**asdict(act), "value": _value_to_json(act.value)},
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> WeightScheme:
        """The scheme that ``to_json`` wrote; further keys are left alone."""
        known = {f.name: values[f.name] for f in fields(WeightScheme)}
        act, block = known["activation"], known["block"]
        return cls(
            **{
                **known,
                "value": _value_from_json(known["value"]),
                "block": tuple(block) if block else None,
                "scale": ScaleType(**known["scale"]),
                "activation": ActivationScheme(**{**act, "value": _value_from_json(act["value"])}) if act else None,
            }
        )

    @property
    def bits(self) -> int:
        """Bits per code, rounded up for vector codebooks of less than a whole bit per weight."""
        return -int(-self.value.bits // 1)

    @property
    def is_int(self) -> bool:
        return isinstance(self.value, Int)

    def group_of(self, in_features: int) -> int:
        """Input features that share one scale, for a module of ``in_features``."""
        return self.group_size if self.group_size > 0 else in_features

    def groups(self, in_features: int) -> int:
        """Number of groups along the input, ceil(in_features / group)."""
        return -(-in_features // self.group_of(in_features))

    def describe(self) -> str:
        """A short human name, e.g. ``INT4 g128 asym``, ``FP8 block 128x128`` or ``NVFP4``."""
        name = self.value.name
        if (standard := _STANDARD.get((self.value, self.group_size, self.scale.dtype))) is not None:
            name = standard
        elif self.block:
            name += f" block {self.block[0]}x{self.block[1]}"
        elif self.group_size == PER_CHANNEL:
            name += " channel"
        elif self.group_size == PER_TENSOR:
            name += " tensor"
        else:
            name += f" g{self.group_size}"
        if self.is_int:
            name += " sym" if self.symmetric else " asym"
        if self.scale.per_super:
            name += " nested scales"
        if self.act_order:
            name += " act-order"
        if self.activation is not None:
            act = self.activation
            name += f" A{act.bits:g} {'dynamic' if act.dynamic else 'static'} {act.strategy}"
            if not act.symmetric:
                name += " asym"
        if self.transform:
            name += f" {self.transform}"
        return name


_VALUE_TYPES: dict[str, type[ValueType]] = {
    "int": Int, "float": Float, "codebook": Codebook, "vectors": VectorCodebook
}  # fmt: skip


def _value_to_json(value: ValueType) -> dict[str, Any]:
    kind = next(name for name, cls in _VALUE_TYPES.items() if isinstance(value, cls))
    return {"type": kind, **asdict(value)}


def _value_from_json(values: Mapping[str, Any]) -> ValueType:
    return _VALUE_TYPES[values["type"]](**{name: value for name, value in values.items() if name != "type"})


# Value type, group and scale that together have a name of their own.
_STANDARD: dict[tuple[ValueType, int, str], str] = {(E2M1, 32, "e8m0"): "MXFP4", (E2M1, 16, "e4m3"): "NVFP4"}
