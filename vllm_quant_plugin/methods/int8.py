"""``vqp_int8`` (alias ``int8``): compressed-tensors int-quantized checkpoints, and INT8 while loading.

Online options, in ``quantization_config``: ``activations`` (``"dynamic"``, the default, is W8A8 with
one scale per token; ``"none"`` is W8A16), ``group_size`` (-1; another needs ``activations: none``).
"""

from __future__ import annotations

from typing import Any, ClassVar

from vllm_quant_plugin.errors import CheckpointError
from vllm_quant_plugin.methods.config import VqpConfig
from vllm_quant_plugin.methods.online import check_options, online_model
from vllm_quant_plugin.scheme import PER_CHANNEL, ActivationScheme, ModelScheme, Scheme


class VqpInt8Config(VqpConfig):
    """INT8 W8A8 and W8A16."""

    name: ClassVar[str] = "vqp_int8"
    names: ClassVar[tuple[str, ...]] = ("vqp_int8", "int8")

    @classmethod
    def online_scheme(cls, options: dict[str, Any]) -> ModelScheme:
        check_options(cls.name, options, ("activations", "group_size"))
        activations = options.get("activations", "dynamic")
        group_size = options.get("group_size", PER_CHANNEL)
        if activations not in ("dynamic", "none"):
            raise CheckpointError(f"vqp_int8: activations {activations!r} is not known", "it is 'dynamic' or 'none'")
        if not isinstance(group_size, int) or (group_size != PER_CHANNEL and group_size <= 0):
            raise CheckpointError(f"vqp_int8: group_size {group_size!r} is impossible", "it is -1 or positive")
        if group_size != PER_CHANNEL and activations != "none":
            raise CheckpointError("vqp_int8: group_size needs activations 'none' (W8A16)", "leave group_size out")
        activation = ActivationScheme("int") if activations == "dynamic" else None
        return online_model(cls.name, Scheme("dense", bits=8, group_size=group_size, activation=activation), options)
