"""GPTQModel's ``dynamic``: overrides by regular expression, in GPTQ and AWQ configs. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from vllm_quant_kernels.scheme import Int
from vllm_quant_plugin.formats.fields import Fields, check_group_size
from vllm_quant_plugin.schemes import Rule, StoredScheme

# How an override's codes were found.
_HARMLESS = ("mse", "damp_percent", "damp_auto_increment", "static_groups", "true_sequential", "act_group_aware")


def dynamic_rules(fields: Fields, base: StoredScheme, check_bits: Callable[[int], int]) -> tuple[Rule, ...]:
    """Regex -> override of ``base``; ``-:`` excludes, ``+:`` or nothing includes.

    Raises:
        CheckpointError: an override holds a key that is not known, or an impossible value.
    """
    rules = []
    for pattern, override in fields.get("dynamic", default={}).items():
        if pattern.startswith("-:"):
            rules.append(Rule(pattern.removeprefix("-:"), None))
            continue
        own = Fields(override or {}, f"quantization_config.dynamic[{pattern!r}]")
        own.harmless(_HARMLESS)
        own.refuse("adapter", "adapters are not applied")
        scheme = replace(
            base,
            value=Int(check_bits(own.integer("bits", default=base.bits))),
            group_size=check_group_size(own.integer("group_size", default=base.group_size)),
            symmetric=own.boolean("sym", default=base.symmetric),
            act_order=own.boolean("desc_act", default=base.act_order),
        )
        own.finish()
        rules.append(Rule(pattern.removeprefix("+:"), scheme))
    return tuple(rules)
