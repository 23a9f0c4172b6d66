"""From config.json to ``ModelArch``: one builder per kind of model, chosen by ``model_type``. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vllm_quant_plugin.architecture.arch import ModelArch
from vllm_quant_plugin.architecture.families import decoder, encdec, gemma_edge, hybrid, mla, vision
from vllm_quant_plugin.architecture.families.layer_lists import check_layer_lists
from vllm_quant_plugin.architecture.families.style import STYLES
from vllm_quant_plugin.architecture.families.support import ALIASES, REMOVED
from vllm_quant_plugin.architecture.reader import TEXT_KEYS, Reader, text_reader
from vllm_quant_plugin.errors import CheckpointError, NoFeasiblePlanError

# Keys of an unknown family that a Llama-like decoder does not account for.
_UNACCOUNTED = {
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), "experts"),
    "kv_lora_rank": "latent attention",
    **dict.fromkeys(("linear_num_key_heads", "mamba_d_state", "ssm_state_size", "state_size"), "recurrent layers"),
    "encoder_layers": "an encoder",
}
_BUILDERS = {
    **hybrid.BUILDERS,
    "whisper": encdec.whisper,
    "gemma3n_text": gemma_edge.gemma3n,
    "gemma4_text": gemma_edge.gemma4,
}


def known_model_types() -> set[str]:
    """Every ``model_type`` that a builder reads."""
    return {*mla.MODEL_TYPES, *_BUILDERS, *STYLES, *ALIASES}


def describe(config: Mapping[str, Any]) -> ModelArch:
    """The model that config.json describes.

    An unknown ``model_type`` is read as a Llama-like decoder and marked as not exact.

    Raises:
        CheckpointError: a key that is needed is missing or impossible.
        NoFeasiblePlanError: vLLM does not serve the architecture any more.
    """
    reader = text_reader(config)
    model_type = reader.text("model_type") or str(config.get("model_type") or "")
    model_type = ALIASES.get(model_type, model_type)
    architecture = decoder.architecture(config)
    last = REMOVED.get(architecture)
    if last is not None:
        raise NoFeasiblePlanError(
            f"vLLM {last} was the last version that served {architecture}", "use another model, or that version of vLLM"
        )
    if model_type in known_model_types():
        check_layer_lists(reader, model_type)
    return _with_towers(_describe(reader, config, model_type), config)


def _with_towers(arch: ModelArch, config: Mapping[str, Any]) -> ModelArch:
    """Add the towers, or note those that the config alone does not size."""
    towers = [key.removesuffix("_config") for key in ("vision_config", "audio_config") if config.get(key)]
    if not towers:
        return arch
    arch = replace(arch, nested=any(config.get(key) for key in TEXT_KEYS))
    found = vision.vision_tower(config, arch.hidden)
    if found is None:
        return replace(arch, rules=(*arch.rules, *vision.head_rules(config)), unsized=tuple(towers))
    parameters, rules = found
    rest = tuple(tower for tower in towers if tower != "vision")
    return replace(arch, first=(*parameters, *arch.first), rules=(*arch.rules, *rules), unsized=rest)


def _describe(reader: Reader, config: Mapping[str, Any], model_type: str) -> ModelArch:
    if model_type in mla.MODEL_TYPES:
        return mla.build(reader, config)
    builder = _BUILDERS.get(model_type)
    if builder is not None:
        return builder(reader, config)
    style = STYLES.get(model_type)
    if style is not None:
        return decoder.build(reader, config, style)
    if not reader.has("num_attention_heads") or not reader.has("hidden_size"):
        raise CheckpointError(
            f"config.json: model_type {model_type or 'missing'!r} is unknown and its config is not Llama-like",
            "plan needs hidden_size, num_hidden_layers, num_attention_heads, intermediate_size and vocab_size",
        )
    extra = next((what for key, what in _UNACCOUNTED.items() if reader.config.get(key)), "")
    if extra and not reader.has("intermediate_size"):
        reader = Reader({**reader.config, "intermediate_size": reader.integer("hidden_size")}, reader.where)
    arch = replace(decoder.build(reader, config, STYLES["llama"], exact=False), guessed=extra)
    return replace(arch, notes=(f"model_type {model_type!r} is unknown: a Llama-like decoder is assumed",))
