"""How many 32-bit words hold a run of small unsigned integers. No torch; ``bits`` packs and unpacks them."""

from __future__ import annotations

from vllm_quant_kernels.sizes import dense_words

__all__ = ["dense_words", "padded_words"]


def padded_words(count: int, bits: int) -> int:
    """Words that hold ``count`` fields, 32 // bits in each (the padded layout)."""
    return -(-count // (32 // bits))
