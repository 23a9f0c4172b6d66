"""``vqp_fp8``: FP8 checkpoints of both dialects, and FP8 while loading (options: ``vllm_quant_plugin.online``).

Where no FP8 tensor cores are in use, FP8 weights meet 16-bit activations.
"""

from __future__ import annotations

from typing import ClassVar

from vllm_quant_plugin.methods.config import VqpConfig


class VqpFp8Config(VqpConfig):
    """FP8 E4M3 weights: per tensor, per channel and in blocks."""

    name: ClassVar[str] = "vqp_fp8"
    names: ClassVar[tuple[str, ...]] = ("vqp_fp8",)
