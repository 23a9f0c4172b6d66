"""FP8 E4M3 weights and activations: per channel, per tensor, or in blocks of 128 x 128."""

from __future__ import annotations

from dataclasses import replace

from vllm_quant_kernels.scheme import E4M3, PER_CHANNEL, PER_TENSOR, ActivationScheme
from vllm_quant_plugin.errors import UsageError
from vllm_quant_plugin.formats.compressed_tensors import FLOAT_QUANTIZED
from vllm_quant_plugin.quantize.algorithm import Library, register_algorithm
from vllm_quant_plugin.quantize.algorithms.rtn import RoundToNearest
from vllm_quant_plugin.quantize.options import SchemeRequest
from vllm_quant_plugin.schemes import Storage, StoredScheme

BLOCK = (128, 128)


def w8a8_refusal(scheme: StoredScheme) -> str | None:
    """What llm-compressor is not used for: anything but symmetric weights with 8-bit activations."""
    fits = scheme.block is None and scheme.symmetric and scheme.activation is not None
    return None if fits else f"does not do {scheme.describe()} here"


class Fp8(RoundToNearest):
    """FP8 by rounding to nearest."""

    name = "fp8"
    bits = (8,)
    mixed_bits = ()
    presets = ("channel", "tensor", "block")
    libraries = (
        Library("llmcompressor", lambda scheme, options: {"smooth": None}, w8a8_refusal, own_environment=True),
    )

    def scheme(self, request: SchemeRequest) -> StoredScheme:
        if request.bits not in (None, 8):
            raise UsageError(f"fp8 cannot store {request.bits} bits per weight", "leave --bits out")
        if request.symmetric is False or request.act_order or request.group_size not in (None, PER_CHANNEL):
            raise UsageError("fp8 takes no --group-size, --act-order or --asym", "use --level channel, tensor or block")
        return self.with_activations(_layout(request), request.activations)

    def with_activations(self, scheme: StoredScheme, activations: str | None) -> StoredScheme:
        made = super().with_activations(scheme, activations)
        if made.activation is not None and not made.activation.dynamic:
            # One scale for the input and one for the weight is what static FP8 checkpoints hold.
            return replace(made, storage=Storage("fp8"), group_size=PER_TENSOR)
        return made


def _layout(request: SchemeRequest) -> StoredScheme:
    if request.preset == "tensor":
        return StoredScheme(E4M3, PER_TENSOR, activation=ActivationScheme(E4M3), storage=Storage("fp8"))
    if request.preset == "block":
        group = ActivationScheme(E4M3, strategy="group", group_size=BLOCK[1])
        return StoredScheme(E4M3, BLOCK[1], block=BLOCK, activation=group, storage=Storage("fp8"))
    token = ActivationScheme(E4M3) if request.quantize_activations is not False else None
    return StoredScheme(E4M3, PER_CHANNEL, activation=token, storage=FLOAT_QUANTIZED)


register_algorithm(Fp8())
