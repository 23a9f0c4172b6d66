"""transformers' defaults of keys that a config leaves out, as data (``scripts/transformers_defaults.py``). No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any


@cache
def _table() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(__file__).with_name("defaults.json").read_text())
    return found


def completed(config: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    """``config`` as transformers reads it: other names of a key resolved, keys that are left out at their defaults."""
    found = {**_table()["types"].get(model_type, {}), **config}
    for alias, name in _table()["aliases"].get(model_type, {}).items():
        if alias in config and name not in config:
            found[name] = config[alias]
    return found


def checks_heads(model_type: str) -> bool:
    """Whether transformers refuses a hidden size that the heads do not divide, even where head_dim is given."""
    return model_type in _table()["even_heads"]


def ties_as_text(model_type: str) -> bool:
    """Whether a multimodal model has tied embeddings where only its text config says so."""
    return model_type in _table()["text_ties"]


def part_type(model_type: str, part: str) -> str:
    """The ``model_type`` of a multimodal model's ``text_config`` or ``vision_config`` that names none, else ""."""
    found: str = _table()["nested"].get(model_type, {}).get(part, "")
    return found
