"""What a module's scheme becomes in another format, and why it cannot. No torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

from vllm_quant_plugin.errors import UsageError
from vllm_quant_plugin.quant_config import AWQ_BITS, GPTQ_BITS
from vllm_quant_plugin.scheme import PER_CHANNEL, PER_TENSOR, Scheme, StorageFormat

Target = Literal["gptq", "awq", "compressed-tensors"]
TARGETS: tuple[Target, ...] = get_args(Target)
_COMPRESSED: dict[StorageFormat, StorageFormat] = {
    "awq": "pack-quantized", "gptq": "pack-quantized", "fp8": "float-quantized"
}  # fmt: skip


def _refuse(name: str, why: str, hint: str) -> UsageError:
    return UsageError(f"{name} {why}", hint)


def _weight_only(name: str, scheme: Scheme, target: Target, bits: tuple[int, ...]) -> None:
    """What AWQ's and GPTQ's layouts have in common: integers, 16-bit activations, few widths."""
    if scheme.kind != "int":
        raise _refuse(name, f"is {scheme.describe()}: {target} holds integers", "--to compressed-tensors holds FP8")
    if scheme.activation is not None:
        raise _refuse(
            name, f"has 8-bit activations ({scheme.describe()}), which {target} does not know",
            "it would be another model; keep it as it is",
        )  # fmt: skip
    if scheme.bits not in bits:
        listed = ", ".join(map(str, bits))
        raise _refuse(name, f"has {scheme.bits} bits: {target} holds {listed}", "--to compressed-tensors holds 2 to 8")


def target_scheme(name: str, scheme: Scheme, target: Target) -> Scheme:
    """The scheme of module ``name`` once it is stored as ``target``.

    Raises:
        UsageError: the format cannot hold it without loss.
    """
    group = PER_CHANNEL if scheme.group_size == PER_TENSOR else scheme.group_size
    if target == "gptq":
        _weight_only(name, scheme, target, GPTQ_BITS)
        # v2 keeps zero points as they are; v1's "minus one" cannot say zero to every reader.
        offset = 1 if scheme.symmetric else 0
        return replace(scheme, storage="gptq", group_size=group, zero_offset=offset)
    if target == "awq":
        _weight_only(name, scheme, target, AWQ_BITS)
        if scheme.act_order:
            raise _refuse(name, "is act-order, which AWQ's layout does not know", "--to compressed-tensors or gptq")
        # Readers expect zero points: those of a symmetric weight are the middle code.
        return replace(scheme, storage="awq", group_size=group, symmetric=False, zero_offset=0)
    if scheme.storage not in _COMPRESSED:
        raise _refuse(name, "is compressed-tensors already", "there is nothing to convert")
    if scheme.kind == "fp8_e5m2":
        raise _refuse(name, "is FP8 E5M2: compressed-tensors holds E4M3", "keep it as it is")
    return replace(scheme, storage=_COMPRESSED[scheme.storage], zero_offset=0)
