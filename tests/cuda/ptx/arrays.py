"""The type of all arrays here: what they hold changes with the instruction."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]
