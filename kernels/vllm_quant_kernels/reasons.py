"""Reasons for which several kernels cannot run a weight. No torch."""

from __future__ import annotations

from vllm_quant_kernels.scheme import Float, Int, WeightScheme


def plain_scales(scheme: WeightScheme) -> str | None:
    """None where weights have one level of floating-point scales and no transform."""
    if scheme.scale.per_super is not None:
        return "scales of two levels"
    if scheme.scale.dtype not in ("float", "float16", "bfloat16", "float32"):
        return f"scales in {scheme.scale.dtype}"
    return f"the transform {scheme.transform}" if scheme.transform else None


def int_or_float(scheme: WeightScheme, floats: tuple[Float, ...]) -> str | None:
    """None for integers of 2 to 8 bits and for the ``floats``."""
    value = scheme.value
    if isinstance(value, Int):
        return None if 2 <= value.bits <= 8 else f"{value.bits}-bit integers"
    return None if value in floats else f"{value.name} weights"


def int8_gemm(scheme: WeightScheme) -> str | None:
    """None where the scheme is that of INT8 GEMMs: symmetric weights with one scale per output channel.

    Other W8A8 weights (in groups, with zero points) run with 16-bit activations, which is nearer to the original
    model than what their config describes.
    """
    act = scheme.activation
    if act is None:
        return "16-bit activations"
    if act.value != Int(8) or scheme.value != Int(8):
        return f"{scheme.value.name} weights with {act.value.name} activations"
    if act.strategy not in ("token", "tensor"):
        return f"activation scales per {act.strategy}"
    if not scheme.symmetric:
        return "asymmetric weights"
    if scheme.act_order:
        return "act-order"
    if scheme.group_size > 0:
        return f"groups of {scheme.group_size} input features"
    return None
