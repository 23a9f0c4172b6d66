"""KV-cache scales from the checkpoint, and transforms of queries and keys on their way to the attention."""

from __future__ import annotations

from typing import Any

import torch

from vllm_quant_kernels.rotation import chain
from vllm_quant_plugin import compat_layers as layers
from vllm_quant_plugin.loader.transform_placeholders import TransformPlaceholders
from vllm_quant_plugin.loader.transform_tensors import TransformTensors
from vllm_quant_plugin.transforms import ATTENTION, Application


class VqpKVCacheMethod(layers.BaseKVCacheMethod):
    """vLLM's own handling: ``k_scale`` and ``v_scale`` are read when present and 1.0 otherwise."""


class TransformedKVCacheMethod(VqpKVCacheMethod):
    """Queries and keys, position-encoded, are transformed head by head before keys are quantized and cached.

    Args:
        config: the quantization config.
        module: the attention module's name.
        applications: at ``q_attn`` and ``k_cache``, in the order of the config.
        tensors: the model's.
    """

    def __init__(
        self, config: Any, module: str, applications: tuple[Application, ...], tensors: TransformTensors
    ) -> None:
        super().__init__(config)
        self._module, self._applications, self._tensors = module, applications, tensors
        self._placeholders: TransformPlaceholders | None = None

    def create_weights(self, layer: Any) -> None:
        super().create_weights(layer)
        self._dtype, self._device = torch.get_default_dtype(), torch.empty(0).device
        self._placeholders = TransformPlaceholders(self._tensors)
        for one in self._applications:
            one.check_size(self._module, layer.head_size)
            self._placeholders.add(layer, one, one.transform.blocks(layer.head_size), self._module, None)

    def process_weights_after_loading(self, layer: Any) -> None:
        super().process_weights_after_loading(layer)
        if self._placeholders is None:
            return
        self._placeholders.remove(layer)
        self._placeholders = None
        for location in ATTENTION:
            maps = [
                self._tensors.map_of(
                    one, one.transform.blocks(layer.head_size), self._module, self._dtype, self._device
                )
                for one in self._applications
                if one.location == location
            ]
            layer.add_module(f"{location}_transform", chain(maps))
        self._tensors.done()
        layer.register_forward_pre_hook(_transform_heads, with_kwargs=True)


def _transform_heads(
    layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Blocks divide a head, so heads in a row need no other shape."""
    found = [*args]
    for position, (name, location) in enumerate(zip(("query", "key"), ATTENTION, strict=True)):
        transform = getattr(layer, f"{location}_transform")
        if transform is None:
            continue
        if position < len(found):
            found[position] = None if found[position] is None else transform(found[position])
        elif kwargs.get(name) is not None:
            kwargs = {**kwargs, name: transform(kwargs[name])}
    return tuple(found), kwargs
