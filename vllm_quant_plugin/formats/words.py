"""How many 32-bit words hold a run of small unsigned integers. No torch; ``bits`` packs and unpacks them."""

from __future__ import annotations


def padded_words(count: int, bits: int) -> int:
    """Words that hold ``count`` fields, 32 // bits in each (the padded layout)."""
    return -(-count // (32 // bits))


def dense_words(count: int, bits: int) -> int:
    """Words that hold ``count`` fields one after another (the dense layout: fields may cross words)."""
    return -(-count * bits // 32)
