"""Sizes: the same spellings everywhere, and one line for what is none."""

from __future__ import annotations

import pytest

from vllm_quant_plugin.errors import UsageError
from vllm_quant_plugin.sizes import LARGEST, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("48GiB", 48 << 30), ("48G", 48 << 30), ("48g", 48 << 30), ("48gi", 48 << 30), ("48 gib", 48 << 30),
        ("48GB", 48 * 10**9), ("4.5GB", 4_500_000_000), ("700MB", 700 * 10**6), ("512MiB", 512 << 20),
        ("512M", 512 << 20), ("1.5k", 1536), ("1.5kB", 1500), ("2T", 2 << 40), ("12", 12), ("12B", 12),
        ("9007199254740993", 9007199254740993), ("1048576TiB", LARGEST),
    ],
)  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text, "--size") == size


@pytest.mark.parametrize(
    "text", ["", "big", "-1GB", "0MB", "0", "4.5XB", "1e9", "4,5GB", "٣GB", "G", "1048577TiB", "9" * 31, "9" * 500]
)
def test_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="--size") as caught:
        parse_size(text, "--size")
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1 << 10, "1.0 KiB"), (14 << 20, "14.0 MiB"), (3 << 29, "1.50 GiB"),
     (5 << 40, "5.00 TiB")],
)  # fmt: skip
def test_printed(size: int, text: str) -> None:
    assert format_size(size) == text
