"""A matrix kept in a file for as long as its memory is lent."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from vllm_quant_plugin.quantize.modules import PARKED_BYTES


@contextmanager
def parked(matrix: torch.Tensor, folder: Path) -> Iterator[Callable[[], None] | None]:
    """Save a float32 matrix for the time of the block.

    Args:
        matrix: row-major. Within the block its memory may be overwritten.
        folder: on a disk with room for it; the file has no name, so that a killed run leaves none.

    Yields:
        A function that brings back the values into the same memory; None for a matrix that is smaller than
        ``PARKED_BYTES`` or on a GPU, which is to be copied instead.
    """
    if matrix.nbytes < PARKED_BYTES or matrix.device.type != "cpu":
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
