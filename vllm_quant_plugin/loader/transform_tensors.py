"""The tensors of transforms on their way from the checkpoint to the maps that layers apply.

A matrix is named by the modules that it applies to (``...down_proj.R4_input.weight``). One that many modules share is
stored under the name of one of them only, as ``save_pretrained`` drops copies: a module without tensors of its own
takes those of its group with the same size.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch

from vllm_quant_kernels import rotation
from vllm_quant_plugin.errors import CheckpointError
from vllm_quant_plugin.loader.dummy import dummy_weights_requested
from vllm_quant_plugin.transforms import Application, Transform

# A group of the config, the size of its map, and, where both directions are stored, which one.
_Key = tuple[Transform, int, bool]


class TransformTensors:
    """What the checkpoint stores of a model's transforms, and the maps made of it. Pickles as an empty one."""

    def __init__(self) -> None:
        self._stored: dict[tuple[_Key, str], dict[str, torch.Tensor]] = {}
        self._maps: weakref.WeakValueDictionary[Any, torch.nn.Module] = weakref.WeakValueDictionary()
        self._waiting = 0

    def __reduce__(self) -> tuple[type[TransformTensors], tuple[()]]:
        return TransformTensors, ()

    def expect(self) -> None:
        """One more layer will ask for its maps, and say ``done`` after that."""
        self._waiting += 1

    def done(self) -> None:
        """A layer has its maps. The last one drops the checkpoint's tensors."""
        self._waiting -= 1
        if not self._waiting:
            self._stored.clear()

    def put(self, application: Application, size: int, module: str, leaf: str, tensor: torch.Tensor) -> None:
        """Keep a tensor of ``module``. Those of a transform that needs none may come all the same."""
        if application.transform.stored:
            self._stored.setdefault((_key(application, size), module), {})[leaf] = tensor

    def map_of(
        self, application: Application, size: int, module: str, dtype: torch.dtype, device: torch.device
    ) -> torch.nn.Module:
        """The map of ``module``, the same object for modules with equal maps. Call it when the checkpoint is loaded.

        Args:
            size: of one block.
            dtype: of the activations.

        Raises:
            CheckpointError: a tensor is missing, or has another shape.
        """
        key = _key(application, size)
        owner, tensors = self._tensors(key, module)
        compute = rotation.compute_dtype(dtype, double=application.transform.double)
        known = (key, owner, application.inverse and application.transform.stored, compute, device)
        found = self._maps.get(known)
        if found is None:
            found = _build(application, size, module, tensors, compute, device)
            self._maps[known] = found
        return found

    def _tensors(self, key: _Key, module: str) -> tuple[str, dict[str, torch.Tensor]]:
        """Tensors of the module, or of the first that has any; and of whom."""
        shared = next(((name, t) for (k, name), t in self._stored.items() if k == key), ("", {}))
        own = self._stored.get((key, module))
        if own is None or all(leaf in shared[1] and torch.equal(own[leaf], shared[1][leaf]) for leaf in own):
            return shared
        return module, own


def _key(application: Application, size: int) -> _Key:
    transform, inverse = application.map_key
    return transform, size, inverse


def _build(
    application: Application,
    size: int,
    module: str,
    tensors: dict[str, torch.Tensor],
    dtype: torch.dtype,
    device: torch.device,
) -> torch.nn.Module:
    transform, inverse = application.transform, application.inverse
    if not transform.stored:
        return rotation.Hadamard.sylvester(size, dtype, device)
    if not tensors and dummy_weights_requested():
        return rotation.BlockMatrix(torch.eye(size, dtype=dtype, device=device))

    def tensor(leaf: str, *shape: int) -> torch.Tensor:
        name = f"{module}.{application.leaf}.{leaf}"
        if leaf not in tensors:
            raise CheckpointError(
                f"tensor {name} is missing from the checkpoint: transform_config says {application.describe()}",
                "it cannot be computed; save the model again with its transforms, or download again",
            )
        if tuple(tensors[leaf].shape) != shape:
            raise CheckpointError(
                f"tensor {name} has shape {list(tensors[leaf].shape)}, expected {list(shape)}",
                "config.json and weights do not belong together, or the file is damaged",
            )
        return tensors[leaf].to(device)

    if transform.kind == "hadamard":
        matrix = rotation.sylvester(size, dtype, device)
    else:
        matrix = tensor("weight", size, size)
    if transform.permuted:
        order = tensor("perm", size).long()
        matrix = matrix[order][:, order]
    if transform.kind == "random-matrix":
        return rotation.BlockMatrix(matrix.to(dtype))
    found = rotation.factored(matrix, dtype, transposed=inverse)
    if found is not None:
        return found
    if inverse:
        matrix = matrix.t()
    return rotation.BlockMatrix((matrix.double() * size**-0.5).to(dtype))
