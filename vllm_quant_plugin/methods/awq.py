"""``vqp_awq``: AWQ checkpoints."""

from __future__ import annotations

from typing import ClassVar

from vllm_quant_plugin.methods.config import VqpConfig


class VqpAwqConfig(VqpConfig):
    """AWQ checkpoints in every bit-width and grouping of ``formats/awq.py``."""

    name: ClassVar[str] = "vqp_awq"
    names: ClassVar[tuple[str, ...]] = ("vqp_awq",)
