"""How an interrupted run differs from the one that is to resume it. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

# As the command line calls them.
_FLAGS = {
    "recipe.method": "-m", "recipe.backend": "--backend", "recipe.calibration.source": "--calibration",
    "recipe.calibration.samples": "--calibration-samples", "recipe.calibration.seq_len": "--seq-len",
    "recipe.calibration.seed": "--seed", "recipe.scheme.value.bits": "--bits",
    "recipe.scheme.group_size": "--group-size",
    "recipe.scheme.act_order": "--act-order", "recipe.kv_cache": "--kv-cache", "recipe.rules": "--recipe",
    "calibration": "the calibration text's tokens", "environment.torch_threads": "the number of threads",
}  # fmt: skip
_STORAGE = "recipe.scheme.storage."
_DIFFERENCES_SHOWN = 4


def differences(before: Any, now: Any) -> list[str]:
    """How two fingerprints differ, one entry each; what only follows from another difference is left out."""
    found = dict(_unequal(before, now))
    if any(name.startswith("recipe.calibration.") for name in found):
        # Other flags give other tokens.
        found.pop("calibration", None)
    weights = [name for name in found if name.startswith("recipe.scheme.")]
    if not all(name.startswith(_STORAGE) for name in weights):
        # Where the layout differs since the weights do.
        found = {name: how for name, how in found.items() if not name.startswith(_STORAGE)}
    shown = [f"{_FLAGS.get(name, name.removeprefix('recipe.'))} {how}" for name, how in found.items()]
    more = len(shown) - _DIFFERENCES_SHOWN
    return shown[:_DIFFERENCES_SHOWN] + ([f"and {more} more"] if more > 0 else [])


def _unequal(before: Any, now: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in {**before, **now}:
            yield from _unequal(before.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif before != now:
        short = all(isinstance(v, str | int | float | bool | None) and len(str(v)) < 40 for v in (before, now))
        yield name, f"was {_shown(before)}, is {_shown(now)}" if short else "changed"


def _shown(value: Any) -> str:
    return "absent" if value is None else str(value)
