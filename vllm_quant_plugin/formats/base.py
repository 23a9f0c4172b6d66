"""What every on-disk format offers: its tensors' names and shapes, and the way to the canonical form and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from vllm_quant_kernels.canonical import CanonicalWeight
from vllm_quant_plugin.errors import CheckpointError
from vllm_quant_plugin.scheme import Scheme

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class TensorSpec:
    """What one tensor of a module must look like.

    Attributes:
        shapes: the shapes that are accepted.
        dtypes: the dtypes that are accepted.
        optional: the module may come without it.
    """

    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]
    optional: bool = False


FLOATS = (torch.float16, torch.bfloat16, torch.float32)


class Format(ABC):
    """One on-disk format of a linear module. Stateless; N is out_features, K in_features."""

    @abstractmethod
    def specs(self, scheme: Scheme, n: int, k: int) -> dict[str, TensorSpec]:
        """The module's tensors by their last name component."""

    @abstractmethod
    def unpack(self, tensors: Tensors, scheme: Scheme, n: int, k: int) -> CanonicalWeight:
        """Canonical form of tensors that satisfy ``specs``."""

    @abstractmethod
    def pack(self, weight: CanonicalWeight, scheme: Scheme) -> dict[str, torch.Tensor]:
        """Tensors as on disk. ``unpack(pack(w))`` is ``w`` up to the dtype that the format stores scales in."""

    def validate(self, module: str, tensors: Tensors, scheme: Scheme, n: int, k: int) -> None:
        """Check presence, shapes and dtypes.

        Raises:
            CheckpointError: naming the module's tensor, what it is and what it should be.
        """
        for leaf, spec in self.specs(scheme, n, k).items():
            tensor = tensors.get(leaf)
            name = f"{module}.{leaf}"
            if tensor is None:
                if spec.optional:
                    continue
                raise CheckpointError(
                    f"tensor {name} is missing from the checkpoint",
                    f"the config says {scheme.describe()}; check quantization_config or download again",
                )
            shape = tuple(tensor.shape)
            if shape not in spec.shapes:
                wanted = " or ".join(str(list(s)) for s in spec.shapes)
                raise CheckpointError(
                    f"tensor {name} has shape {list(shape)}, expected {wanted} for {scheme.describe()} ({n} x {k})",
                    "config.json and weights do not belong together, or the file is damaged",
                )
            if tensor.dtype not in spec.dtypes:
                wanted = " or ".join(str(d).removeprefix("torch.") for d in spec.dtypes)
                raise CheckpointError(
                    f"tensor {name} is {str(tensor.dtype).removeprefix('torch.')}, expected {wanted}",
                    "config.json and weights do not belong together",
                )


def check_group(scheme: Scheme, k: int, what: str) -> None:
    """Raise CheckpointError unless whole groups fill the K input features."""
    if k % scheme.group_of(k):
        raise CheckpointError(
            f"{what}: group_size {scheme.group_size} does not divide in_features {k}",
            "quantize with a group size that divides every layer's input, or -1",
        )
