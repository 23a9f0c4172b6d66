"""Small unsigned integers into 32-bit words along the last dimension.

``vllm_quant_kernels.unpack`` draws the two ways, padded and dense, and reads them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vllm_quant_kernels.packing import as_int32, pack_dense
from vllm_quant_kernels.unpack import unpack_dense, unpack_padded

__all__ = ["pack_dense", "pack_padded", "unpack_dense", "unpack_padded"]


def pack_padded(values: torch.Tensor, bits: int, order: Sequence[int] | None = None) -> torch.Tensor:
    """Inverse of ``unpack_padded``: uint8 (..., count) to int32 (..., W), missing fields zero."""
    per_word = 32 // bits
    short = -values.shape[-1] % per_word
    if short:
        values = torch.nn.functional.pad(values, (0, short))
    fields = values.unflatten(-1, (-1, per_word))
    words = torch.zeros(fields.shape[:-1], dtype=torch.int64, device=values.device)
    for field in range(per_word):
        words |= fields[..., field if order is None else order[field]].to(torch.int64) << (bits * field)
    return as_int32(words)
