"""The parameters that vLLM's model files see while a checkpoint loads.

vLLM finds a checkpoint tensor's destination by the name of a parameter and hands the tensor to that parameter's
``weight_loader``. Some model files also read how the tensor is laid out: Falcon reorders fused rows along
``output_dim``, Step3 writes q, k and v into ``param.narrow(param.output_dim, ...)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import torch

from vllm_quant_plugin.errors import CheckpointError
from vllm_quant_plugin.formats.base import ITEM_SIZE, TensorSpec

Load = Callable[..., Any]


class Placeholder(torch.nn.Parameter):
    """A parameter without elements that stands for one tensor of the checkpoint, whole: of all parts and all ranks.

    ``shape`` is the stored tensor's. ``data``, ``size()`` and ``numel()`` are those of an empty tensor, so that code
    which writes to the parameter instead of calling its ``weight_loader`` fails rather than losing the weight.

    Attributes:
        weight_loader: what vLLM's model files call with the parameter and the loaded tensor.
        output_dim, input_dim: dimensions along the output and the input features. Like the next two, present only
            where the tensor has such a dimension, as in vLLM's own parameters.
        packed_dim, packed_factor: dimension with several codes per element, and how many.
    """

    _shape: torch.Size
    _slices: dict[int, torch.Tensor]
    weight_loader: Load
    output_dim: int
    input_dim: int
    packed_dim: int
    packed_factor: Fraction

    @property
    def shape(self) -> torch.Size:  # type: ignore[override]
        return self._shape

    def narrow(self, dim: int, start: int, length: int) -> Slice:  # type: ignore[override]
        """What ``copy_`` fills: once the slices cover the tensor, ``weight_loader`` gets them as one."""
        if not 0 <= start <= start + length <= self.shape[dim]:
            raise CheckpointError(
                f"rows {start} to {start + length} lie outside a tensor of shape {list(self.shape)}",
                "config.json and weights do not belong together",
            )
        return Slice(self, dim, start, length)

    def fill(self, dim: int, start: int, tensor: torch.Tensor) -> None:
        """Keep ``tensor`` as the slice of dimension ``dim`` that begins at ``start``."""
        self._slices[start] = tensor
        if sum(part.shape[dim] for part in self._slices.values()) == self.shape[dim]:
            parts = [self._slices[at] for at in sorted(self._slices)]
            self._slices.clear()
            self.weight_loader(self, torch.cat(parts, dim))


class Slice:
    """A part of a placeholder along one dimension: as much of a tensor as is written to."""

    def __init__(self, parameter: Placeholder, dim: int, start: int, length: int) -> None:
        self._parameter, self._dim, self._start = parameter, dim, start
        shape = list(parameter.shape)
        shape[dim] = length
        self.shape = torch.Size(shape)

    def copy_(self, tensor: torch.Tensor) -> Slice:
        """Raises CheckpointError where ``tensor`` has another shape."""
        if tensor.shape != self.shape:
            raise CheckpointError(
                f"a tensor of shape {list(tensor.shape)} does not fit its part of a fused matrix, {list(self.shape)}",
                "config.json and weights do not belong together, or the file is damaged",
            )
        self._parameter.fill(self._dim, self._start, tensor)
        return self


def placeholder(spec: TensorSpec, bits: int, load: Load) -> Placeholder:
    """The placeholder of a tensor that looks like ``spec`` and holds codes of ``bits`` bits where it is packed.

    Its dtype keeps vLLM quiet, which warns of every tensor that has another dtype, unless a float is widened.
    """
    dtype = "float32" if "float32" in spec.dtypes else spec.dtypes[0]
    parameter = Placeholder(torch.empty(0, dtype=getattr(torch, dtype)), requires_grad=False)
    parameter._shape, parameter._slices = torch.Size(spec.shapes[0]), {}
    parameter.weight_loader = load
    for name in ("output_dim", "input_dim", "packed_dim"):
        if getattr(spec, name) is not None:
            setattr(parameter, name, getattr(spec, name))
    if spec.packed_dim is not None:
        parameter.packed_factor = Fraction(8 * ITEM_SIZE[spec.dtypes[0]], bits)
    return parameter


class Placeholders:
    """The placeholders of one layer."""

    def __init__(self) -> None:
        self._names: list[str] = []

    def register(
        self,
        layer: torch.nn.Module,
        specs: Mapping[str, TensorSpec],
        bits: int,
        load: Callable[[str], Load],
        prefix: str = "",
    ) -> None:
        """Add one parameter per tensor, named ``prefix`` and the tensor's own name; ``load(name)`` loads it."""
        for leaf, spec in specs.items():
            layer.register_parameter(f"{prefix}{leaf}", placeholder(spec, bits, load(leaf)))
            self._names.append(f"{prefix}{leaf}")

    def requantized(self, layer: torch.nn.Module) -> bool:
        """Whether vLLM loads this layer only to quantize it again (online requantization, from 0.33 on).

        It then marks the parameters when they have been registered, and asks the method's ``dequantize_weight`` for
        the weight instead of calling ``process_weights_after_loading``.
        """
        return any(getattr(getattr(layer, name), "requantization_source", False) for name in self._names)

    def remove(self, layer: torch.nn.Module) -> None:
        for name in self._names:
            delattr(layer, name)
        self._names.clear()
