"""What crosses the boundary to the C libraries: addresses and dtype codes."""

from __future__ import annotations

import torch

# VQP_F32, VQP_CUDA_F32, ...: the same in both libraries.
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.uint8: 3}


def pointer(tensor: torch.Tensor | None) -> int | None:
    """The address of the tensor's data; NULL for None."""
    return None if tensor is None else tensor.data_ptr()
