"""Where vLLM's loader puts the tensors of a layer's transforms: submodules named as in the checkpoint.

down_proj.R4_input.weight                  of one module
qkv_proj.R2_output.weight, shards q, k, v  of modules that vLLM fuses
"""

from __future__ import annotations

from typing import Any

import torch

from vllm_quant_plugin.formats.base import FLOATS, TensorSpec
from vllm_quant_plugin.loader.part import ShardId
from vllm_quant_plugin.loader.placeholder import placeholder
from vllm_quant_plugin.loader.transform_tensors import TransformTensors
from vllm_quant_plugin.transforms import Application

# Known under each transform, whether it needs them or not: libraries also store matrices that can be computed.
_SPECS = {"weight": FLOATS, "perm": ("int64",)}


class TransformPlaceholders:
    """The placeholders of one layer; what is loaded goes to ``tensors``."""

    def __init__(self, tensors: TransformTensors) -> None:
        self._tensors = tensors
        self._names: set[str] = set()
        self._targets: dict[tuple[str, ShardId], tuple[Application, int, str]] = {}
        tensors.expect()

    def add(self, layer: torch.nn.Module, application: Application, size: int, module: str, shard_id: ShardId) -> None:
        """Of one transform of one module of the checkpoint.

        Args:
            size: of one block.
            shard_id: what vLLM calls the module among those that it fuses; None where it fuses none.
        """
        self._targets[application.leaf, shard_id] = application, size, module
        if application.leaf in self._names:
            return
        self._names.add(application.leaf)
        holder = torch.nn.Module()
        for leaf, dtypes in _SPECS.items():
            spec = TensorSpec(((size, size) if leaf == "weight" else (size,),), dtypes)
            holder.register_parameter(leaf, placeholder(spec, 0, self._loader(application.leaf, leaf)))
        layer.add_module(application.leaf, holder)

    def _loader(self, name: str, leaf: str) -> Any:
        def load(param: torch.nn.Parameter, loaded_weight: torch.Tensor, shard_id: ShardId = None) -> None:
            found = self._targets.get((name, shard_id))
            if found is not None:
                application, size, module = found
                self._tensors.put(application, size, module, leaf, loaded_weight)

        return load

    def remove(self, layer: torch.nn.Module) -> None:
        for name in self._names:
            delattr(layer, name)
        self._names.clear()
