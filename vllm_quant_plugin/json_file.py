"""JSON objects from files that users bring. No torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vllm_quant_plugin.errors import CheckpointError


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from ``path``; CheckpointError when it is unreadable or no object."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file", "check the path") from None
    except (OSError, ValueError) as err:
        raise CheckpointError(f"{path}: not readable as JSON: {err}", "copy or download the file again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(value).__name__}", "copy the file again")
    return value
