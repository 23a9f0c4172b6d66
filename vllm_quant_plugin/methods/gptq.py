"""``vqp_gptq``: GPTQ checkpoints."""

from __future__ import annotations

from typing import ClassVar

from vllm_quant_plugin.methods.config import VqpConfig


class VqpGptqConfig(VqpConfig):
    """GPTQ checkpoints in every bit-width and grouping of ``formats/gptq.py``."""

    name: ClassVar[str] = "vqp_gptq"
    names: ClassVar[tuple[str, ...]] = ("vqp_gptq",)
