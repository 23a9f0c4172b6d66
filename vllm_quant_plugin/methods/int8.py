"""``vqp_int8`` (alias ``int8``): compressed-tensors int-quantized checkpoints, and INT8 while loading.

The options of the latter are described in ``vllm_quant_plugin.online``.
"""

from __future__ import annotations

from typing import ClassVar

from vllm_quant_plugin.methods.config import VqpConfig


class VqpInt8Config(VqpConfig):
    """INT8 W8A8 and W8A16."""

    name: ClassVar[str] = "vqp_int8"
    names: ClassVar[tuple[str, ...]] = ("vqp_int8", "int8")
