"""``quantization_config`` of config.json, in any dialect we read, to a ``ModelScheme``. No torch.

Dialects: AutoAWQ and GPTQModel ``awq``; AutoGPTQ and GPTQModel ``gptq``; ``fp8`` (DeepSeek,
Neural Magic); ``compressed-tensors`` (llm-compressor).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from vllm_quant_plugin.errors import CheckpointError
from vllm_quant_plugin.scheme import (
    PER_CHANNEL,
    PER_TENSOR,
    ActivationScheme,
    ModelScheme,
    Rule,
    Scheme,
    StorageFormat,
    WeightKind,
)

Config = Mapping[str, Any]
AWQ_BITS = (2, 4, 8)
GPTQ_BITS = (2, 3, 4, 8)


def parse_quantization_config(config: Config) -> ModelScheme:
    """Read a checkpoint's ``quantization_config``.

    Raises:
        CheckpointError: unknown ``quant_method``, a missing or impossible field.
    """
    method = str(config.get("quant_method", "")).lower()
    if not method and "config_groups" in config:
        method = "compressed-tensors"
    parser = _PARSERS.get(method)
    if parser is None:
        known = ", ".join(sorted(_PARSERS))
        raise CheckpointError(f"quant_method {method or 'missing'!r} is not one this plugin reads", f"it reads {known}")
    try:
        model = parser(config)
    except CheckpointError:
        raise
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as err:
        raise CheckpointError(f"quantization_config is malformed: {err}", "fix config.json") from None
    return replace(model, raw=dict(config))


def _integer(config: Config, *names: str, default: int | None = None) -> int:
    for name in names:
        value = config.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise CheckpointError(f"quantization_config.{name} must be an integer, got {value!r}", "fix config.json")
        return value
    if default is None:
        raise CheckpointError(f"quantization_config has no {names[0]!r}", "fix config.json")
    return default


def _check_group(group_size: int) -> int:
    if group_size == PER_CHANNEL or group_size > 0:
        return group_size
    raise CheckpointError(f"group_size {group_size} is impossible", "it is -1 (one per channel) or positive")


def _check_bits(bits: int, allowed: tuple[int, ...], what: str) -> int:
    if bits in allowed:
        return bits
    listed = ", ".join(map(str, allowed))
    hint = f"this layout holds {listed}"
    if what == "AWQ" and bits == 3:
        hint += "; 3-bit AWQ is stored as compressed-tensors pack-quantized"
    raise CheckpointError(f"{what} with {bits} bits is not supported", hint)


def _names(config: Config, *keys: str) -> list[str]:
    for key in keys:
        value = config.get(key)
        if value:
            flat = [n for item in value for n in (item if isinstance(item, list) else [item])]
            return [str(n) for n in flat]
    return []


def _parse_awq(config: Config) -> ModelScheme:
    version = str(config.get("version") or config.get("format") or "gemm").lower()
    if version != "gemm":
        raise CheckpointError(f"AWQ layout {version!r} is not supported", "requantize with version 'gemm'")
    scheme = Scheme(
        storage="awq",
        bits=_check_bits(_integer(config, "bits", "w_bit"), AWQ_BITS, "AWQ"),
        group_size=_check_group(_integer(config, "group_size", "q_group_size")),
        symmetric=not config.get("zero_point", True),
    )
    rules = tuple(Rule(n, None, "contains") for n in _names(config, "modules_to_not_convert"))
    rules = (*_gptq_dynamic(config, scheme, AWQ_BITS), *rules)
    return ModelScheme("awq", scheme, rules, lm_head=bool(config.get("lm_head")))


def _gptq_dynamic(config: Config, base: Scheme, allowed: tuple[int, ...]) -> tuple[Rule, ...]:
    """GPTQModel's ``dynamic``: regex -> override, ``-:`` excludes, ``+:`` or nothing includes."""
    rules = []
    for pattern, override in (config.get("dynamic") or {}).items():
        if pattern.startswith("-:"):
            rules.append(Rule(pattern.removeprefix("-:"), None))
            continue
        fields = override or {}
        scheme = replace(
            base,
            bits=_check_bits(_integer(fields, "bits", default=base.bits), allowed, base.storage.upper()),
            group_size=_check_group(_integer(fields, "group_size", default=base.group_size)),
            symmetric=bool(fields.get("sym", base.symmetric)),
            act_order=bool(fields.get("desc_act", base.act_order)),
        )
        rules.append(Rule(pattern.removeprefix("+:"), scheme))
    return tuple(rules)


def _parse_gptq(config: Config) -> ModelScheme:
    layout = str(config.get("checkpoint_format") or config.get("format") or "gptq").lower()
    if layout not in ("gptq", "gptq_v2"):
        raise CheckpointError(f"GPTQ layout {layout!r} is not supported", "requantize with format 'gptq' or 'gptq_v2'")
    if str(config.get("pack_dtype") or "int32").removeprefix("torch.") != "int32":
        raise CheckpointError(f"GPTQ pack_dtype {config['pack_dtype']!r} is not supported", "requantize with int32")
    scheme = Scheme(
        storage="gptq",
        bits=_check_bits(_integer(config, "bits"), GPTQ_BITS, "GPTQ"),
        group_size=_check_group(_integer(config, "group_size")),
        symmetric=bool(config.get("sym", True)),
        act_order=bool(config.get("desc_act", False)),
        zero_offset=1 if layout == "gptq" else 0,
    )
    rules = _gptq_dynamic(config, scheme, GPTQ_BITS)
    rules += tuple(Rule(n, None, "contains") for n in _names(config, "modules_to_not_convert"))
    default: Scheme | None = scheme
    only = _names(config, "modules_in_block_to_quantize")
    if only:
        rules += tuple(Rule(n, scheme, "path") for n in only)
        default = None
    return ModelScheme("gptq", default, rules, lm_head=bool(config.get("lm_head")))


def _parse_fp8(config: Config) -> ModelScheme:
    block = config.get("weight_block_size")
    if block is not None and (len(block) != 2 or not all(isinstance(b, int) and b > 0 for b in block)):
        raise CheckpointError(f"weight_block_size {block!r} is impossible", "it is two positive integers")
    dynamic = str(config.get("activation_scheme", "dynamic")) == "dynamic"
    kind: WeightKind = "fp8_e5m2" if str(config.get("fmt", "e4m3")).lower() == "e5m2" else "fp8_e4m3"
    if block:
        activation = ActivationScheme(kind, strategy="group", dynamic=True, group_size=block[1])
    else:
        activation = ActivationScheme(kind, strategy="token" if dynamic else "tensor", dynamic=dynamic)
    scheme = Scheme(
        storage="fp8",
        kind=kind,
        bits=8,
        group_size=block[1] if block else PER_TENSOR,
        block=(block[0], block[1]) if block else None,
        activation=activation,
    )
    rules = tuple(Rule(n, None, "path") for n in _names(config, "ignored_layers", "modules_to_not_convert"))
    return ModelScheme("fp8", scheme, rules, kv_cache="fp8" if config.get("kv_cache_scheme") else None)


def _kind(fields: Config) -> WeightKind:
    return "fp8_e4m3" if fields.get("type") == "float" else "int"


def _ct_activation(fields: Config | None) -> ActivationScheme | None:
    if not fields:
        return None
    bits = _integer(fields, "num_bits")
    strategy = str(fields.get("strategy") or ("token" if fields.get("dynamic") else "tensor"))
    if bits != 8 or strategy not in ("token", "tensor", "group"):
        raise CheckpointError(
            f"compressed-tensors activations of {bits} bits per {strategy} are not supported",
            "8 bits per token, tensor or group are",
        )
    return ActivationScheme(
        _kind(fields),
        bits,
        strategy,  # type: ignore[arg-type]  # checked above
        dynamic=bool(fields.get("dynamic", False)),
        symmetric=bool(fields.get("symmetric", True)),
        group_size=fields.get("group_size"),
    )


def _ct_storage(layout: str, weights: Config, activation: ActivationScheme | None) -> StorageFormat:
    if layout in ("pack-quantized", "int-quantized", "float-quantized"):
        return layout  # type: ignore[return-value]
    if layout == "naive-quantized" or not layout:
        if weights.get("type") == "float":
            return "float-quantized"
        return "int-quantized" if activation is not None or weights.get("num_bits") == 8 else "pack-quantized"
    raise CheckpointError(
        f"compressed-tensors format {layout!r} is not supported",
        "pack-quantized, int-quantized and float-quantized are",
    )


def _ct_scheme(group: Config, layout: str) -> Scheme:
    weights = group.get("weights")
    if not weights:
        raise CheckpointError("compressed-tensors group without 'weights'", "fix config.json")
    activation = _ct_activation(group.get("input_activations"))
    storage = _ct_storage(str(group.get("format") or layout), weights, activation)
    bits, kind = _integer(weights, "num_bits"), _kind(weights)
    allowed = (8,) if kind != "int" else tuple(range(2, 9))
    _check_bits(bits, allowed, f"compressed-tensors {weights.get('type', 'int')}")
    strategy, block = str(weights.get("strategy") or "tensor"), None
    if strategy == "group":
        group_size = _check_group(_integer(weights, "group_size"))
    elif strategy == "channel":
        group_size = PER_CHANNEL
    elif strategy == "tensor":
        group_size = PER_TENSOR
    elif strategy == "block":
        structure = weights.get("block_structure") or [128, 128]
        block = (int(structure[0]), int(structure[1]))
        group_size = block[1]
    else:
        raise CheckpointError(f"weight strategy {strategy!r} is not supported", "tensor, channel, group and block are")
    return Scheme(
        storage=storage,
        kind=kind,
        bits=bits,
        group_size=group_size,
        symmetric=bool(weights.get("symmetric", True)),
        act_order=weights.get("actorder") in ("group", True),
        block=block,
        activation=activation,
    )


def _ct_rule(target: str, scheme: Scheme | None) -> Rule:
    if target.startswith("re:"):
        return Rule(target.removeprefix("re:"), scheme)
    return Rule(target, scheme, "class" if target[:1].isupper() and "." not in target else "path")


def _parse_compressed_tensors(config: Config) -> ModelScheme:
    groups = config.get("config_groups") or {}
    if not groups:
        raise CheckpointError("compressed-tensors config without config_groups", "fix config.json")
    layout = str(config.get("format") or "")
    rules = [_ct_rule(str(name), None) for name in config.get("ignore") or []]
    by_class: list[Rule] = []
    for group in groups.values():
        scheme = _ct_scheme(group, layout)
        for target in group.get("targets") or ["Linear"]:
            rule = _ct_rule(str(target), scheme)
            (by_class if rule.mode == "class" else rules).append(rule)
    kv_cache = "fp8" if config.get("kv_cache_scheme") else None
    return ModelScheme("compressed-tensors", None, (*rules, *by_class), lm_head=True, kv_cache=kv_cache)


_PARSERS: dict[str, Callable[[Config], ModelScheme]] = {
    "awq": _parse_awq,
    "gptq": _parse_gptq,
    "fp8": _parse_fp8,
    "compressed-tensors": _parse_compressed_tensors,
}
