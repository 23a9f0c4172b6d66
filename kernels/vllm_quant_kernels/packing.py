"""Codes into 32-bit words: the inverse of ``vllm_quant_kernels.unpack.unpack_dense``."""

from __future__ import annotations

import torch

from vllm_quant_kernels.sizes import dense_words


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
    return as_int32(words).flatten(-2)[..., : dense_words(count, bits)]


def as_int32(words: torch.Tensor) -> torch.Tensor:
    """int64 values in [0, 2**32) to the int32 with the same bits."""
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)
