"""Rounding of sizes, shared by every packed layout. No torch."""

from __future__ import annotations


def round_up(value: int, multiple: int) -> int:
    """The least multiple of ``multiple`` that is at least ``value``."""
    return -(-value // multiple) * multiple
