"""``vqp_fp8``: FP8 checkpoints of both dialects, and FP8 while loading.

Online options, in ``quantization_config``: ``weight_block_size`` ([128, 128], else one scale per
output channel), ``activations`` (``"dynamic"``, the default: FP8, one scale per token, or per token and
128 columns with such blocks; ``"none"``: 16 bits). Where no FP8 tensor cores are in use, FP8 weights meet
16-bit activations.
"""

from __future__ import annotations

from typing import Any, ClassVar

from vllm_quant_plugin.errors import CheckpointError
from vllm_quant_plugin.methods.config import VqpConfig
from vllm_quant_plugin.methods.online import check_options, online_model
from vllm_quant_plugin.scheme import PER_CHANNEL, ActivationScheme, ModelScheme, Scheme


class VqpFp8Config(VqpConfig):
    """FP8 E4M3 weights: per tensor, per channel and in blocks."""

    name: ClassVar[str] = "vqp_fp8"
    names: ClassVar[tuple[str, ...]] = ("vqp_fp8",)

    @classmethod
    def online_scheme(cls, options: dict[str, Any]) -> ModelScheme:
        check_options(cls.name, options, ("weight_block_size", "activations"))
        block, activations = options.get("weight_block_size"), options.get("activations", "dynamic")
        if activations not in ("dynamic", "none"):
            raise CheckpointError(f"vqp_fp8: activations {activations!r} is not known", "it is 'dynamic' or 'none'")
        activation = None
        if block is None:
            if activations == "dynamic":
                activation = ActivationScheme("fp8_e4m3")
            scheme = Scheme("dense", "fp8_e4m3", 8, PER_CHANNEL, activation=activation)
        elif len(block) == 2 and all(isinstance(b, int) and b > 0 for b in block):
            if activations == "dynamic":
                activation = ActivationScheme("fp8_e4m3", strategy="group", group_size=block[1])
            scheme = Scheme("dense", "fp8_e4m3", 8, block[1], block=(block[0], block[1]), activation=activation)
        else:
            raise CheckpointError(f"vqp_fp8: weight_block_size {block!r} is impossible", "it is two positive integers")
        return online_model(cls.name, scheme, options)
