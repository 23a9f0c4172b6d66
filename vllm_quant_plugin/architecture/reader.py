"""Checked access to a config.json of unknown origin. No torch.

Every number the planner computes with passes through here, so that a missing key, a string
for a number, a negative or an absurd value is one clear line and never a traceback or a hang.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm_quant_plugin.architecture.defaults import completed, part_type, ties_as_text
from vllm_quant_plugin.errors import CheckpointError

# Far above any model; low enough that loops over layers and experts stay fast.
LIMITS = {"layers": 4096, "experts": 65_536, "width": 16_777_216, "vocab": 268_435_456, "length": 1 << 40}
TEXT_KEYS = ("text_config", "llm_config", "language_config")


class Reader:
    """A config object with checked getters; ``where`` names it in messages."""

    def __init__(self, config: Mapping[str, Any], where: str = "config.json") -> None:
        self.config = config
        self.where = where

    def has(self, *names: str) -> bool:
        return any(self.config.get(name) is not None for name in names)

    def integer(self, *names: str, default: int | None = None, limit: str = "width", least: int = 1) -> int:
        """The first of ``names`` that is set, as an integer in ``least`` .. LIMITS[limit].

        Raises:
            CheckpointError: none is set and there is no default; not an integer; out of range.
        """
        for name in names:
            value = self.config.get(name)
            if value is None:
                continue
            if isinstance(value, float) and value.is_integer():
                value = int(value)
            if isinstance(value, bool) or not isinstance(value, int):
                shown = repr(value)[:60]
                raise CheckpointError(f"{self.where}: {name} must be an integer, it is {shown}", "fix config.json")
            if not least <= value <= LIMITS[limit]:
                shown = str(value) if abs(value) < 10**30 else "a huge number"
                raise CheckpointError(
                    f"{self.where}: {name} = {shown} is out of range ({least} to {LIMITS[limit]})", "fix config.json"
                )
            return value
        if default is None:
            raise CheckpointError(f"{self.where}: {names[0]} is missing", "fix config.json, or copy it again")
        return default

    def number(self, name: str, default: float) -> float:
        value = self.config.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e9:
            raise CheckpointError(f"{self.where}: {name} must be a number, it is {value!r:.60}", "fix config.json")
        return float(value)

    def flag(self, *names: str, default: bool = False) -> bool:
        for name in names:
            value = self.config.get(name)
            if value is None:
                continue
            if not isinstance(value, (bool, int)):
                raise CheckpointError(
                    f"{self.where}: {name} must be true or false, not {value!r:.60}", "fix config.json"
                )
            return bool(value)
        return default

    def text(self, name: str, default: str = "") -> str:
        value = self.config.get(name)
        return value if isinstance(value, str) else default

    def items(self, *names: str, limit: int = LIMITS["layers"]) -> list[Any] | None:
        """A list of at most ``limit`` items, or None where it is absent."""
        for name in names:
            value = self.config.get(name)
            if value is None:
                continue
            if not isinstance(value, list) or len(value) > limit:
                raise CheckpointError(f"{self.where}: {name} must be a list of up to {limit} items", "fix config.json")
            return value
        return None

    def strings(self, *names: str) -> list[str] | None:
        found = self.items(*names)
        if found is not None and not all(isinstance(item, str) for item in found):
            raise CheckpointError(f"{self.where}: {names[0]} must hold strings", "fix config.json")
        return found

    def sub(self, name: str) -> Reader | None:
        """The nested object ``name``, or None."""
        value = self.config.get(name)
        return Reader(value, f"{self.where}: {name}") if isinstance(value, dict) else None


def text_reader(config: Mapping[str, Any]) -> Reader:
    """The language model's part of ``config``.

    A nested text config inherits nothing but tie_word_embeddings, whatever it says itself; keys that are left out have
    transformers' defaults.
    """
    whole = str(config.get("model_type") or "")
    for key in TEXT_KEYS:
        nested = config.get(key)
        if isinstance(nested, dict):
            merged = dict(nested)
            tied = completed(config, whole).get("tie_word_embeddings")
            if not tied and ties_as_text(whole):
                kind = str(merged.get("model_type") or part_type(whole, "text_config"))
                tied = completed(merged, kind).get("tie_word_embeddings")
            if tied is not None:  # vLLM gives the language model the outer value (VllmConfig.with_hf_config)
                merged["tie_word_embeddings"] = tied
            if "architectures" not in merged and config.get("architectures"):
                merged["architectures"] = config["architectures"]
            model_type = merged.setdefault("model_type", part_type(whole, "text_config"))
            return Reader(completed(merged, str(model_type)), f"config.json: {key}")
        if nested is not None:
            raise CheckpointError(f"config.json: {key} must be an object", "fix config.json")
    return Reader(completed(config, whole))
