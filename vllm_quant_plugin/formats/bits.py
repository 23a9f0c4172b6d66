"""Small unsigned integers in 32-bit words, as the checkpoint formats lay them out.

padded   32 // bits fields a word, unused high bits zero (2, 4 and 8 bits leave none)

    bit 0                              bit 31
    | f0 | f1 | f2 | ...         | pad |

dense    one bit stream, least significant bit first; 32 fields fill exactly ``bits`` words

    | f0 | f1 | ... | f10 lo || f10 hi | f11 | ...          (bits = 3)

Both work along the last dimension. int32 is what safetensors and vLLM carry; its sign bit is
data here, so every shift is followed by a mask.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def padded_words(count: int, bits: int) -> int:
    """Words that hold ``count`` fields in the padded layout."""
    return -(-count // (32 // bits))


def dense_words(count: int, bits: int) -> int:
    """Words that hold ``count`` fields in the dense layout."""
    return -(-count * bits // 32)


def unpack_padded(words: torch.Tensor, bits: int, count: int, order: Sequence[int] | None = None) -> torch.Tensor:
    """Fields of padded words.

    Args:
        words: int32 (..., W).
        count: fields to keep; the rest is padding.
        order: ``order[i]`` is the logical position of field ``i`` within its word; None is 0, 1, 2, ...

    Returns:
        uint8 (..., count).
    """
    per_word = 32 // bits
    out = torch.empty(*words.shape, per_word, dtype=torch.uint8, device=words.device)
    mask = (1 << bits) - 1
    for field in range(per_word):
        out[..., field if order is None else order[field]] = (words >> (bits * field)) & mask
    return out.flatten(-2)[..., :count]


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


def unpack_dense(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Fields of a dense stream: int32 (..., ceil(count * bits / 32)) to uint8 (..., count)."""
    short = -words.shape[-1] % bits
    if short:
        words = torch.nn.functional.pad(words, (0, short))
    blocks = words.unflatten(-1, (-1, bits))
    out = torch.empty(*blocks.shape[:-1], 32, dtype=torch.uint8, device=words.device)
    mask = (1 << bits) - 1
    for field in range(32):
        word, shift = divmod(field * bits, 32)
        value = (blocks[..., word] >> shift) & mask
        left = 32 - shift
        if left < bits:
            value = (value & ((1 << left) - 1)) | ((blocks[..., word + 1] << left) & mask)
        out[..., field] = value
    return out.flatten(-2)[..., :count]


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
