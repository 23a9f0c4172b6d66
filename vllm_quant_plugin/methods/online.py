"""Options of online quantization, from ``--hf-overrides '{"quantization_config": {...}}'``."""

from __future__ import annotations

from typing import Any

from vllm_quant_plugin.errors import CheckpointError
from vllm_quant_plugin.scheme import ModelScheme, Rule, Scheme

COMMON = ("quant_method", "modules_to_not_convert")


def check_options(name: str, options: dict[str, Any], known: tuple[str, ...]) -> None:
    """Refuse options that this method does not have, rather than ignoring a typing error."""
    unknown = sorted(set(options) - set(known) - set(COMMON))
    if unknown:
        raise CheckpointError(
            f"{name}: unknown option {unknown[0]!r} in quantization_config",
            f"the options are {', '.join((*known, COMMON[1]))}",
        )


def online_model(name: str, scheme: Scheme, options: dict[str, Any]) -> ModelScheme:
    """``scheme`` for every linear layer but the LM head and ``modules_to_not_convert``."""
    rules = tuple(Rule(str(n), None, "path") for n in options.get("modules_to_not_convert") or ())
    return ModelScheme(name, scheme, rules, raw=dict(options))
