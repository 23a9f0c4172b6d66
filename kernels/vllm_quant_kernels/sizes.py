"""Sizes that every packed layout counts with. No torch."""

from __future__ import annotations


def round_up(value: int, multiple: int) -> int:
    """The least multiple of ``multiple`` that is at least ``value``."""
    return -(-value // multiple) * multiple


def dense_words(count: int, bits: int) -> int:
    """32-bit words that hold ``count`` fields one after another (the dense layout: fields may cross words)."""
    return -(-count * bits // 32)
