"""Linear algebra on a K x K matrix without a second one: permutation, and the factor that GPTQ reads.

A second moment of 14,336 inputs takes 0.8 GB in float32. torch returns results in new memory and GPTQModel indexes its
matrix twice, which makes three of it at a time; here there is one. Values are the same bit for bit: LAPACK works on
column-major matrices, and torch copies any other into that layout before it calls it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from vllm_quant_plugin.quantize.modules import SPILL_BYTES

# Rows or columns that are permuted at a time.
_STRIPE = 256


def inverse_factor(matrix: torch.Tensor) -> bool:
    """Overwrite a matrix with the upper triangular U for which U^T U is its inverse.

    Args:
        matrix: symmetric, column-major (``stride() == (1, K)``), on the CPU.

    Returns:
        False where it is not positive definite; its values are lost then, too.
    """
    info = torch.empty((), dtype=torch.int32)
    torch.linalg.cholesky_ex(matrix, out=(matrix, info))
    if int(info):
        return False
    torch.cholesky_inverse(matrix, out=matrix)
    torch.linalg.cholesky_ex(matrix, upper=True, out=(matrix, info))
    return not int(info)


class OwnedMatrix(torch.Tensor):
    """A column-major K x K matrix that nobody else reads: ``m[order]`` and ``m[:, order]`` permute it where it lies.

    What else is done with it is torch's, and returns plain tensors.
    """

    @classmethod
    def scaled(cls, matrix: torch.Tensor, factor: float) -> OwnedMatrix:
        """``matrix * factor`` in memory of its own."""
        out = torch.empty_like(matrix, memory_format=torch.contiguous_format).mT
        return torch.mul(matrix, factor, out=out).as_subclass(cls)

    @classmethod
    def over(cls, matrix: torch.Tensor, factor: float) -> OwnedMatrix:
        """``matrix * factor`` in the memory of a row-major ``matrix``, whose values are lost."""
        _transpose(matrix.mul_(factor))
        return matrix.mT.as_subclass(cls)

    @property
    def plain(self) -> torch.Tensor:
        """The same memory as a plain tensor."""
        return self.as_subclass(torch.Tensor)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if func is torch.Tensor.__getitem__ and isinstance(args[0], cls) and _permute(args[0].plain, args[1]):
                return args[0]
            return func(*args, **(kwargs or {}))


def _transpose(matrix: torch.Tensor) -> None:
    """In place."""
    for row, stripe in enumerate(matrix.split(_STRIPE)):
        for column, block in enumerate(stripe.split(_STRIPE, dim=1)[: row + 1]):
            other = matrix[column * _STRIPE :, row * _STRIPE :][: block.shape[1], : block.shape[0]]
            kept = block.clone()
            if column < row:
                block.copy_(other.mT)
            other.copy_(kept.mT)


def _permute(matrix: torch.Tensor, index: Any) -> bool:
    """Permute rows (``index`` an int64 (K,) tensor) or columns (``:`` and such a tensor); False for another index."""
    dim = 0
    if isinstance(index, tuple) and len(index) == 2 and index[0] == slice(None):
        dim, index = 1, index[1]
    if not isinstance(index, torch.Tensor) or index.dtype != torch.long or index.shape != matrix.shape[:1]:
        return False
    for stripe in matrix.split(_STRIPE, dim=1 - dim):
        stripe.copy_(stripe.index_select(dim, index))
    return True


@contextmanager
def spilled(matrix: torch.Tensor, folder: Path) -> Iterator[Callable[[], None] | None]:
    """Save a float32 matrix for the time of the block.

    Args:
        matrix: row-major. Within the block its memory may be overwritten.
        folder: on a disk with room for it; the file has no name, so that a killed run leaves none.

    Yields:
        A function that brings back the values into the same memory; None for a matrix that is smaller than
        ``SPILL_BYTES`` or on a GPU, which is to be copied instead.
    """
    if matrix.nbytes < SPILL_BYTES or matrix.device.type != "cpu":
        yield None
        return
    values = matrix.numpy()
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(values.data)

        def restore() -> None:
            file.seek(0)
            # A file on disk gives all that was written, or raises.
            file.readinto(values.data)

        yield restore
