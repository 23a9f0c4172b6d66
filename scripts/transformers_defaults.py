"""Write vllm_quant_plugin/architecture/defaults.json: what transformers assumes for keys that a config leaves out.

vLLM reads every config through transformers' classes; the planner must not import them (they pull in torch), so that
their defaults are kept as data. tests/core/test_defaults.py compares the file with the installed transformers.

    python scripts/transformers_defaults.py
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path
from typing import Any

from vllm_quant_plugin.architecture.families import known_model_types

FILE = Path(__file__).parents[1] / "vllm_quant_plugin" / "architecture" / "defaults.json"
# Of multimodal models: the type of their parts is a default, too.
NESTED = ("aya_vision", "gemma3", "gemma3n", "idefics3", "internvl", "llama4", "llava", "llava_next",
          "llava_next_video", "llava_onevision", "mistral3", "paligemma", "pixtral", "qwen2_5_vl", "qwen2_vl",
          "qwen3_vl", "qwen3_vl_moe", "smolvlm", "video_llava")  # fmt: skip
VISION = ("clip_vision_model", "glm4v_vision", "idefics3_vision", "internvl_vision", "llama4_vision_model", "pixtral",
          "qwen2_5_vl_vision", "qwen2_vl_vision", "qwen3_vl_vision", "qwen3_vl_moe_vision", "siglip_vision_model",
          "smolvlm_vision")  # fmt: skip
# Keys that no size depends on.
_IGNORED = ("_token_id", "dropout", "_drop", "init", "loss", "beta", "_coef", "use_cache", "return_", "output_",
            "output_hidden", "temperature", "problem_type", "_name", "_pdrop", "seed", "pretraining_tp",
            "chunk_size_feed", "transformers_version", "dtype")  # fmt: skip


def defaults_of(config_class: Any) -> dict[str, Any]:
    """Scalar defaults as the class declares them; those that it computes from others are None there and left out."""
    found = {}
    for field in dataclasses.fields(config_class):
        value = field.default
        wanted = field.name == "pad_token_id" or not any(part in field.name for part in _IGNORED)
        if wanted and isinstance(value, (bool, int, float, str)) and not field.name.startswith("_"):
            found[field.name] = value
    found.pop("model_type", None)
    return found


def _checks_heads(config_class: Any) -> bool:
    """Whether the class refuses a hidden size that its heads do not divide."""
    check = getattr(config_class, "validate_architecture", None)
    return check is not None and "self.hidden_size % self.num_attention_heads != 0" in inspect.getsource(check)


def _takes_tie_of_text(config_class: Any) -> bool:
    """Whether a multimodal class is tied where only its text config says so."""
    return "= self.text_config.tie_word_embeddings" in inspect.getsource(config_class)


def table() -> dict[str, Any]:
    """model_type -> its defaults; under ``nested`` the types of a multimodal model's parts, under ``aliases``
    other names of keys,
    under ``even_heads`` the types whose heads must divide the hidden size, under
    ``text_ties`` the multimodal types that are tied where their text config is."""
    from transformers import CONFIG_MAPPING

    types = sorted({*known_model_types(), *VISION, *NESTED} & set(CONFIG_MAPPING))
    nested = {}
    for name in NESTED:
        if name in CONFIG_MAPPING:
            whole = CONFIG_MAPPING[name]()
            parts = {key: getattr(whole, key, None) for key in ("text_config", "vision_config")}
            nested[name] = {key: part.model_type for key, part in parts.items() if part is not None}
    classes = {name: CONFIG_MAPPING[name] for name in types}
    return {
        "nested": nested,
        "types": {name: defaults_of(one) for name, one in classes.items()},
        "even_heads": [name for name, one in classes.items() if _checks_heads(one)],
        "text_ties": [name for name in nested if _takes_tie_of_text(CONFIG_MAPPING[name])],
        "aliases": {name: dict(one.attribute_map) for name, one in classes.items() if one.attribute_map},
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(table(), indent=1, sort_keys=True) + "\n")
