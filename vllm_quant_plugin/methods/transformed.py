"""A linear layer, LM head or embedding with transforms of its input and output, around the method that multiplies.

    y = U(W V(x) + b)      V, U: the transforms at ``input`` and ``output``; identities where there are none

The transform is inside ``apply``: whatever else reads the layer's input (another layer, a LoRA adapter) sees x itself.
Parts that vLLM fuses keep their own transforms, of the output always and of the input where they differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from vllm_quant_kernels.rotation import chain
from vllm_quant_plugin import compat_layers as layers
from vllm_quant_plugin.errors import CheckpointError
from vllm_quant_plugin.loader.part import Part, ShardId
from vllm_quant_plugin.loader.shards import ShardPlan, plan_linear
from vllm_quant_plugin.loader.transform_placeholders import TransformPlaceholders
from vllm_quant_plugin.loader.transform_tensors import TransformTensors
from vllm_quant_plugin.transforms import Application, PartTransforms


class TransformedMethod(layers.LinearMethodBase):
    """Args:
    inner: the method of the layer without transforms.
    parts: of each module that the layer fuses, or of the one that it is.
    tensors: the model's.
    """

    def __init__(self, inner: Any, parts: Sequence[PartTransforms], tensors: TransformTensors) -> None:
        self.inner = inner
        self._parts, self._tensors = list(parts), tensors
        self._placeholders: TransformPlaceholders | None = None
        self._names: dict[tuple[int, ...], str] = {}
        self._inputs: list[str | None] = []
        self._outputs: list[tuple[int, int, str | None]] = []

    def create_weights(
        self,
        layer: Any,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        self.inner.create_weights(
            layer, input_size_per_partition, output_partition_sizes, input_size, output_size, params_dtype,
            **extra_weight_attrs,
        )  # fmt: skip
        self._plan = plan = self._planned(layer, input_size, input_size_per_partition, output_size)
        self._widths, self._dtype = list(output_partition_sizes), params_dtype
        if len(self._parts) not in (1, len(plan.parts)):
            raise CheckpointError(
                f"{self._parts[0].module}: transform_config: vLLM fuses {len(plan.parts)} modules here, not "
                f"{len(self._parts)}",
                "requantize the model without transforms",
            )
        self._device = torch.empty(0).device
        self._check(layer)
        self._placeholders = TransformPlaceholders(self._tensors)
        ids: list[ShardId] = [part.shard_id for part in plan.parts] if len(self._parts) > 1 else [None]
        for location in ("input", "output"):
            for shard_id, part, rows in zip(ids, self._parts, self._rows(), strict=True):
                for one in part.at(location):
                    size = one.transform.blocks(plan.in_features if location == "input" else rows)
                    self._placeholders.add(layer, one, size, part.module, shard_id)

    def _planned(self, layer: Any, input_size: int, input_size_per_partition: int, output_size: int) -> ShardPlan:
        return plan_linear(layer, input_size, input_size_per_partition, output_size)

    def _rows(self) -> list[int]:
        """N of each module of the checkpoint."""
        return [part.rows for part in self._plan.parts] if len(self._parts) > 1 else [self._plan.rows]

    def _check(self, layer: Any) -> None:
        """Refuse what this rank cannot compute on its own.

        Raises:
            CheckpointError: naming the transform.
        """
        plan = self._plan
        for i, (part, rows) in enumerate(zip(self._parts, self._rows(), strict=True)):
            held = [plan.parts[i]] if len(self._parts) > 1 else plan.parts
            for one in part.applications:
                at_input = one.location == "input"
                features = plan.in_features if at_input else rows
                one.check_size(part.module, features)
                bounds = [(plan.column_start, plan.column_stop)] if at_input else _bounds(held)
                # One module of several parts is whole only where no part of it is cut.
                whole = not at_input and all((p.start, p.stop) == (0, p.rows) for p in held)
                refusal = None if whole else next(filter(None, (one.cut_refusal(features, *b) for b in bounds)), None)
                if refusal:
                    raise CheckpointError(
                        f"{part.module}: transform_config: {refusal}",
                        "use --tensor-parallel-size 1, or requantize with a head_dim that divides every rank's share",
                    )
            if (
                part.at("output")
                and getattr(layer, "skip_bias_add", False)
                and getattr(layer, "bias", None) is not None
            ):
                raise CheckpointError(
                    f"{part.module}: transform_config: the output is transformed before its bias is added elsewhere",
                    "requantize the model without transforms of this output",
                )

    def process_weights_after_loading(self, layer: Any) -> None:
        self.inner.process_weights_after_loading(layer)
        if self._placeholders is None:
            return
        self._placeholders.remove(layer)
        self._placeholders = None
        for part in self._parts:
            # As the writing library's hooks run: the last of a module's inputs first.
            self._inputs.append(self._register(layer, part, tuple(reversed(part.at("input"))), self._plan.in_features))
        start = 0
        if len(self._parts) == 1:
            self._outputs = [(0, sum(self._widths), self._register(layer, self._parts[0], *self._output(0)))]
        else:
            for i, width in enumerate(self._widths):
                self._outputs.append((start, start + width, self._register(layer, self._parts[i], *self._output(i))))
                start += width
        self._tensors.done()

    def _output(self, index: int) -> tuple[tuple[Application, ...], int]:
        return self._parts[index].at("output"), self._rows()[index]

    def _register(
        self, layer: Any, part: PartTransforms, applications: tuple[Application, ...], features: int
    ) -> str | None:
        """Add the map to the layer; its name there."""
        maps = [
            self._tensors.map_of(one, one.transform.blocks(features), part.module, self._dtype, self._device)
            for one in applications
        ]
        found = chain(maps)
        if found is None:
            return None
        # Equal maps are one object, and then one submodule.
        known = tuple(map(id, maps))
        if known not in self._names:
            self._names[known] = f"{applications[0].location}_transform_{len(self._names)}"
            layer.add_module(self._names[known], found)
        return self._names[known]

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        distinct = list(dict.fromkeys(self._inputs))
        results = {name: self.inner.apply(layer, _mapped(layer, name, x), bias) for name in distinct}
        if len(distinct) == 1 and not any(name for _, _, name in self._outputs):
            return results[distinct[0]]
        parts = [
            _mapped(layer, name, results[self._inputs[i]][..., start:stop])
            for i, (start, stop, name) in enumerate(self._outputs)
        ]
        return torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]

    def tie_weights(self, layer: Any, embed_tokens: Any) -> Any:
        tied = self.inner.tie_weights(layer, embed_tokens)
        if tied.quant_method is not self:  # the inner method has put another in its place
            self.inner, tied.quant_method = tied.quant_method, self
        return tied

    def dequantize_weight(self, layer: Any) -> torch.Tensor:
        """This rank's (N, K) weight with its transforms multiplied in, in the dtype of the activations.

        Before ``process_weights_after_loading`` vLLM asks for it to quantize the layer again: nothing stays then.
        """
        if self._placeholders is not None:
            known, modules = set(layer._parameters), set(layer._modules)
            self.process_weights_after_loading(layer)
            weight = self.dequantize_weight(layer)
            for name in (set(layer._parameters) - known) | (set(layer._modules) - modules):
                delattr(layer, name)
            return weight
        eye = torch.eye(self._plan.column_stop - self._plan.column_start, dtype=self._dtype, device=self._device)
        return self.apply(layer, eye).t().contiguous()


class TransformedEmbedding(TransformedMethod):
    """An embedding whose rows are transformed after the lookup."""

    def _planned(self, layer: Any, input_size: int, input_size_per_partition: int, output_size: int) -> ShardPlan:
        return ShardPlan((Part(None, input_size, 0, input_size),), output_size, 0, output_size)

    def create_weights(self, layer: Any, *sizes: Any, **attributes: Any) -> None:
        super().create_weights(layer, *sizes, **attributes)
        self._widths = [self._plan.rows]

    def embedding(self, layer: Any, ids: torch.Tensor) -> torch.Tensor:
        return _mapped(layer, self._outputs[0][2], self.inner.embedding(layer, ids))


def _mapped(layer: Any, name: str | None, x: torch.Tensor) -> torch.Tensor:
    return x if name is None else getattr(layer, name)(x)


def _bounds(parts: Sequence[Part]) -> list[tuple[int, int]]:
    """Rows that a rank holds of a module that vLLM sees as ``parts``, counted from the module's first."""
    found, offset = [], 0
    for part in parts:
        found.append((offset + part.start, offset + part.stop))
        offset += part.rows
    return found
