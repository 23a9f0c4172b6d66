"""Small unsigned integers into 32-bit words along the last dimension.

``vllm_quant_kernels.unpack`` draws the two ways, padded and dense, and reads them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vllm_quant_kernels.unpack import unpack_dense, unpack_padded
from vllm_quant_plugin.formats.words import dense_words

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
    return _to_int32(words)


def pack_dense(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Inverse of ``unpack_dense``: uint8 (..., count) to int32 (..., ceil(count * bits / 32))."""
    count = values.shape[-1]
    short = -count % 32
    if short:
        values = torch.nn.functional.pad(values, (0, short))
    fields = values.unflatten(-1, (-1, 32))
    words = torch.zeros(*fields.shape[:-1], bits, dtype=torch.int64, device=values.device)
    for field in range(32):
        word, shift = divmod(field * bits, 32)
        value = fields[..., field].to(torch.int64)
        words[..., word] |= (value << shift) & 0xFFFFFFFF
        if 32 - shift < bits:
            words[..., word + 1] |= value >> (32 - shift)
    return _to_int32(words).flatten(-2)[..., : dense_words(count, bits)]


def _to_int32(words: torch.Tensor) -> torch.Tensor:
    """int64 values in [0, 2**32) to the int32 with the same bits."""
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)
