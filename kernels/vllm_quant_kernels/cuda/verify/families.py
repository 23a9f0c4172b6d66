"""Families of CUDA kernels: what is right or wrong as one, and which of them a layer needs. No torch.

A family is a part of the library's code that runs a kind of weight: a defect in it says nothing of the others.

    pack                     codes to the packed layout, every kind of weight
    wna16-KIND-narrow        weight-only, mma.sync tiles of 8 to 64 rows       KIND: int2 .. int8, fp8
    wna16-KIND-wide          weight-only, wgmma tiles of 128 rows and more (Hopper)
    experts-KIND             the grouped form, every tile
    quantize                 activations to INT8 and FP8
    w8a8-KIND-narrow         8-bit products, mma.sync                          KIND: int8, fp8, fp8-blocks
    w8a8-KIND-fused          the same, which quantizes the activations itself
    w8a8-KIND-wide           8-bit products, wgmma (Hopper)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vllm_quant_kernels.scheme import Int, WeightScheme

Part = Literal["pack", "quantize", "narrow", "wide", "fused", "experts"]

# In the order of worth: what most checkpoints need comes first.
WEIGHT_ONLY = ("int4", "int8", "fp8", "int3", "int2", "int6", "int5", "int7")
W8A8 = ("fp8", "int8", "fp8-blocks")


@dataclass(frozen=True)
class Family:
    """One family; ``kind`` is "" for ``pack`` and ``quantize``."""

    name: str
    kernel: str
    kind: str
    part: Part


def _all() -> dict[str, Family]:
    found = [Family("pack", "pack", "", "pack")]
    parts: tuple[Part, ...] = ("narrow", "wide")
    found += [Family(f"wna16-int4-{part}", "wna16", "int4", part) for part in parts]
    found.append(Family("quantize", "quantize", "", "quantize"))
    eight: tuple[Part, ...] = ("narrow", "fused", "wide")
    for kind in W8A8:
        found += [Family(f"w8a8-{kind}-{p}", "w8a8", kind, p) for p in eight if (kind, p) != ("fp8-blocks", "fused")]
    found += [Family(f"wna16-{kind}-{part}", "wna16", kind, part) for kind in WEIGHT_ONLY[1:] for part in parts]
    found += [Family(f"experts-{kind}", "experts", kind, "experts") for kind in WEIGHT_ONLY]
    return {family.name: family for family in found}


FAMILIES: dict[str, Family] = _all()
# What is timed beside the kernel that would serve otherwise: a kernel of the registry and a kind of weight.
SPEED_CLASSES = (
    "wna16-int4", "w8a8-fp8", "w8a8-int8", "wna16-int8", "w8a8-fp8-blocks", "wna16-fp8",
    "wna16-int3", "wna16-int2", "wna16-int6", "wna16-int5", "wna16-int7",
)  # fmt: skip


def speed_class(kernel: str, scheme: WeightScheme) -> str:
    """What a weight of ``scheme`` is timed as: e.g. ``wna16-int4`` for the registry's kernel ``cuda-wna16``."""
    name = kernel.removeprefix("cuda-")
    kind = f"int{scheme.bits}" if isinstance(scheme.value, Int) else "fp8"
    return f"{name}-{kind}-blocks" if name == "w8a8" and scheme.block is not None else f"{name}-{kind}"


def needs(timed: str) -> tuple[str, ...]:
    """The families that a layer of a speed class runs on: those of every M. ``pack`` packs it, ``quantize`` its x."""
    kernel, _, kind = timed.partition("-")
    first = "quantize" if kernel == "w8a8" else "pack"
    return (first, *(f.name for f in FAMILIES.values() if (f.kernel, f.kind) == (kernel, kind)))
