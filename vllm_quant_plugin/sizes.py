"""Sizes in bytes, as they are typed and as they are printed: one reader and one writer for every command. No torch."""

from __future__ import annotations

import re
from decimal import Decimal

from vllm_quant_plugin.errors import UsageError

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
# More than any machine has; a slip of the keyboard must not become a plan.
LARGEST = 1 << 60
_SIZE = re.compile(r"(\d{1,30}(?:\.\d{1,30})?)\s*(?:([kmgt])(i?)(b?)|b)?", re.IGNORECASE | re.ASCII)


def parse_size(text: str, flag: str) -> int:
    """Bytes of a size as a user types it.

    ``48GiB``, ``48G`` and ``48g`` are powers of 1024, ``48GB`` is a power of 1000 (so are K, M and T), and a number
    alone is bytes. Case does not matter, and neither does a blank before the unit.

    Args:
        flag: the option that the size was given to, for the error.

    Raises:
        UsageError: not a size, nothing at all, or more than an exbibyte.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"{flag} {text[:60]!r} is not a size", "write e.g. 48GiB, 48GB, 512MiB, 48G or bytes")
    number, letter, binary, byte = found.groups()
    power = " KMGT".index(letter.upper()) if letter else 0
    size = int(Decimal(number) * (1000 if byte and not binary else 1024) ** power)
    if size == 0:
        raise UsageError(f"{flag} {text[:60]!r} is not a size", "give at least one byte")
    if size > LARGEST:
        raise UsageError(f"{flag} {text[:60]!r} is more than any machine has", f"give at most {LARGEST >> 40} TiB")
    return size


def format_size(nbytes: float) -> str:
    """``14.0 MiB``, ``1.50 GiB``: powers of 1024, as memory is sold and as vLLM's log counts it."""
    value, unit = float(nbytes), UNITS[0]
    for unit in UNITS:
        if abs(value) < 1024 or unit == UNITS[-1]:
            break
        value /= 1024
    digits = {"B": 0, "KiB": 1, "MiB": 1}.get(unit, 2)
    return f"{value:.{digits}f} {unit}"
