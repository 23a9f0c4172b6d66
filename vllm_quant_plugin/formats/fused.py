"""Modules that vLLM loads as one matrix, by the names of their parts. No torch."""

from __future__ import annotations

import re

PARTS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("w1", "w3"))
NAMES = {PARTS[0]: "qkv_proj", PARTS[1]: "gate_up_proj", PARTS[2]: "w13"}


def siblings(name: str) -> tuple[str, ...]:
    """The modules that vLLM fuses with ``name``, itself included, in vLLM's order."""
    stem, _, leaf = name.rpartition(".")
    for parts in PARTS:
        if leaf in parts:
            return tuple(f"{stem}.{part}" for part in parts)
    return (name,)


def fused_pattern(name: str) -> str:
    """Regular expression for ``name`` and the modules that vLLM fuses with it, by their names and by the fused one."""
    names = siblings(name)
    stem = names[0].rpartition(".")[0]
    leaves = [one.rpartition(".")[2] for one in names]
    fused = NAMES.get(tuple(leaves))
    parts = "|".join([*leaves, fused] if fused else leaves)
    return f".*{re.escape(stem)}[.]({parts})$"
