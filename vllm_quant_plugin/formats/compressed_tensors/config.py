"""``quantization_config`` of compressed-tensors to schemes and back. No torch.

Source: compressed-tensors 0.17, quantization/quant_config.py, quant_scheme.py and quant_args.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from vllm_quant_kernels.scheme import E4M3, PER_CHANNEL, PER_TENSOR, ActivationScheme, Int, ValueType
from vllm_quant_plugin.errors import CheckpointError
from vllm_quant_plugin.formats.compressed_tensors.transforms import transforms_of
from vllm_quant_plugin.formats.fields import Config, Enumeration, Fields, check_bits, check_block, check_group_size
from vllm_quant_plugin.formats.fp4 import MXFP4, NVFP4
from vllm_quant_plugin.formats.kv_cache import kv_cache_of
from vllm_quant_plugin.schemes import ModelScheme, Rule, Storage, StoredScheme

VERSION = "0.17.0"
Layout = Literal["pack-quantized", "int-quantized", "float-quantized"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
# Sized, not served.
FP4_LAYOUTS = {"nvfp4-pack-quantized": NVFP4, "mxfp4-pack-quantized": MXFP4}
TYPE = Enumeration({"int": "int", "float": "float"})
# "dynamic" and "static" are aliases of the writing library; true means groups.
ACTORDER = Enumeration(
    {"group": "group", "dynamic": "group", True: "group", "weight": "weight", "static": "weight", False: "none"}
)
WEIGHT_STRATEGY = Enumeration({name: name for name in ("tensor", "channel", "group", "block")})
ACTIVATION_STRATEGY = Enumeration({name: name for name in ("token", "tensor", "group")})
# NVFP4 also has "local"; its groups are read by the name of their format.
DYNAMIC = Enumeration({True: "dynamic", False: "static"})
# naive-quantized: as the value type says.
LAYOUT = Enumeration({name: name for name in (*LAYOUTS, *FP4_LAYOUTS, "naive-quantized")}, exact=True)
# How scales were found, and the dtypes that the tensors themselves have.
_HARMLESS_ARGUMENTS = ("observer", "observer_kwargs", "scale_dtype", "zp_dtype")
_HARMLESS = ("quant_method", "quantization_status", "global_compression_ratio", "version", "run_compressed")
KV_CACHE_SCHEME = {
    "num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True, "observer": "minmax"
}  # fmt: skip


def storage(layout: str) -> Storage:
    """The storage of one of the layouts."""
    return Storage.of("compressed-tensors", layout=layout)


PACK_QUANTIZED, INT_QUANTIZED, FLOAT_QUANTIZED = (storage(layout) for layout in LAYOUTS)


def parse(config: Config) -> ModelScheme:
    """See ``Format.parse``."""
    fields = Fields(config)
    fields.harmless(_HARMLESS)
    transforms = transforms_of(fields)
    sparsity = _sparsity(fields)
    layout = fields.get("format", default="")
    rules = [_rule(str(name), None) for name in fields.get("ignore") or []]
    kv_cache = kv_cache_of(fields)
    groups = fields.get("config_groups") or {}
    fields.finish()
    if not groups and layout in FP4_LAYOUTS:
        scheme = StoredScheme.of(FP4_LAYOUTS[layout], storage(layout))
        return ModelScheme("compressed-tensors", scheme, tuple(rules), True, kv_cache, transforms, sparsity)
    if not groups and kv_cache is None and not transforms:
        raise CheckpointError("compressed-tensors config without config_groups", "fix config.json")
    by_class: list[Rule] = []
    for name, group in groups.items():
        own = Fields(group, f"quantization_config.config_groups.{name}")
        targets = own.get("targets", default=["Linear"])
        if not targets or _is_attention(targets):
            continue  # of the KV cache alone: kv_cache_scheme says the same
        scheme = _scheme(own, layout)
        for target in targets:
            rule = _rule(str(target), scheme)
            (by_class if rule.mode == "class" else rules).append(rule)
        own.finish()
    return ModelScheme("compressed-tensors", None, (*rules, *by_class), True, kv_cache, transforms, sparsity)


def _sparsity(fields: Fields) -> str:
    """What vLLM refuses of weights with zeros: stored densely they are read like any other, and served by this plugin.

    Raises:
        CheckpointError: the zeros are not stored.
    """
    sparsity = fields.get("sparsity_config") or {}
    layout = sparsity.get("format", "dense") if isinstance(sparsity, Mapping) else sparsity
    if layout not in ("dense", None):
        raise CheckpointError(
            f"quantization_config.sparsity_config: format {layout!r} is not read",
            "requantize the model without sparsity",
        )
    targets = sparsity.get("targets") if isinstance(sparsity, Mapping) else None
    return f"a sparsity_config with targets ({sparsity.get('sparsity_structure')})" if targets else ""


def _rule(target: str, scheme: StoredScheme | None) -> Rule:
    if target.startswith("re:"):
        return Rule(target.removeprefix("re:"), scheme)
    return Rule(target, scheme, "class" if target[:1].isupper() and "." not in target else "path")


def _is_attention(targets: Any) -> bool:
    """Whether a group is of attention modules, whose cache ``kv_cache_scheme`` describes: vLLM skips it too."""
    return isinstance(targets, list) and len(targets) == 1 and str(targets[0]).endswith("Attention")


def _value(fields: Fields, bits: int) -> ValueType:
    return E4M3 if fields.choice("type", of=TYPE, default="int") == "float" else Int(bits)


def _inferred_strategy(size: int | None) -> str:
    """As the writing library infers a missing strategy."""
    return "tensor" if size is None else "channel" if size == PER_CHANNEL else "group"


def _activation(arguments: Config | None, where: str) -> ActivationScheme | None:
    if not arguments:
        return None
    fields = Fields(arguments, where)
    fields.harmless((*_HARMLESS_ARGUMENTS, "block_structure"))
    fields.refuse("actorder", "activations have no order")
    bits = fields.integer("num_bits")
    dynamic = fields.choice("dynamic", of=DYNAMIC, default="static") == "dynamic"
    inferred = _inferred_strategy(fields.get("group_size"))
    strategy = fields.choice("strategy", of=ACTIVATION_STRATEGY, default=inferred, what="activation strategy")
    if bits != 8 or (strategy == "token" and not dynamic):
        kind = "" if dynamic else "static "
        raise CheckpointError(
            f"compressed-tensors {kind}activations of {bits} bits per {strategy} are not supported",
            "8 bits are, per token when dynamic, per tensor or per group",
        )
    found = ActivationScheme(
        _value(fields, bits),
        strategy,  # type: ignore[arg-type]  # one of the three
        dynamic=dynamic,
        symmetric=fields.boolean("symmetric", default=True, words=True),
        group_size=fields.get("group_size"),
    )
    fields.finish()
    return found


def _layout(layout: str, value: ValueType, activation: ActivationScheme | None) -> str:
    if layout in LAYOUTS:
        return layout
    if not isinstance(value, Int):
        return "float-quantized"
    return "int-quantized" if activation is not None or value.bits == 8 else "pack-quantized"


def _scheme(group: Fields, layout: Any) -> StoredScheme:
    layout = group.get("format", default=layout)
    if layout != "" and LAYOUT.meaning(layout) is None:
        raise CheckpointError(f"compressed-tensors format {layout!r} is not supported", f"{', '.join(LAYOUTS)} are")
    arguments, inputs = group.get("weights"), group.get("input_activations")
    group.refuse("output_activations", "quantized outputs are not computed")
    if layout in FP4_LAYOUTS:
        return StoredScheme.of(FP4_LAYOUTS[layout], storage(layout))
    if not arguments:
        raise CheckpointError("compressed-tensors group without 'weights'", "fix config.json")
    fields = Fields(arguments, "quantization_config weights")
    fields.harmless(_HARMLESS_ARGUMENTS)
    fields.refuse("dynamic", "weights are quantized once", "fix config.json")
    activation = _activation(inputs, "quantization_config input_activations")
    bits = fields.integer("num_bits")
    value = _value(fields, bits)
    chosen = _layout(layout, value, activation)
    kind = "int" if isinstance(value, Int) else "float"
    check_bits(bits, tuple(range(2, 9)) if kind == "int" else (8,), f"compressed-tensors {kind}")
    size, structure, block = fields.get("group_size"), fields.get("block_structure"), None
    strategy = fields.choice(
        "strategy", of=WEIGHT_STRATEGY, default=_inferred_strategy(size), what="weight strategy"
    )  # fmt: skip
    if strategy == "group":
        group_size = check_group_size(fields.integer("group_size"))
    elif strategy == "block":
        block = check_block(structure or [128, 128])
        group_size = block[1]
    else:
        group_size = PER_CHANNEL if strategy == "channel" else PER_TENSOR
        if size not in (None, -1):
            raise CheckpointError(
                f"quantization_config: weights have group_size {size} and strategy {strategy!r}", "fix config.json"
            )
    order = fields.choice("actorder", of=ACTORDER, default="none")
    symmetric = fields.boolean("symmetric", default=True, words=True)
    fields.finish()
    return StoredScheme(
        value, group_size, block, symmetric, act_order=order == "group", activation=activation, storage=storage(chosen)
    )


def write(
    groups: Sequence[tuple[StoredScheme, Sequence[str]]], ignore: Sequence[str], *, kv_cache: bool = False
) -> dict[str, Any]:
    """The config of a checkpoint with the given (scheme, targets) groups.

    Args:
        kv_cache: the checkpoint holds scales of an FP8 KV cache.
    """
    layouts = {scheme.storage["layout"] for scheme, _ in groups}
    return {
        "quant_method": "compressed-tensors",
        "format": layouts.pop() if len(layouts) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "version": VERSION,
        "config_groups": {f"group_{i}": group_config(scheme, targets) for i, (scheme, targets) in enumerate(groups)},
        "ignore": list(ignore),
        "kv_cache_scheme": KV_CACHE_SCHEME if kv_cache else None,
        "global_compression_ratio": None,
    }


def _strategy(scheme: StoredScheme) -> str:
    if scheme.block:
        return "block"
    return {PER_CHANNEL: "channel", PER_TENSOR: "tensor"}.get(scheme.group_size, "group")


def group_config(scheme: StoredScheme, targets: Sequence[str]) -> dict[str, Any]:
    """One entry of ``config_groups``."""
    kind = "int" if scheme.is_int else "float"
    activation, inputs = scheme.activation, None
    if activation is not None:
        inputs = {
            "num_bits": activation.bits,
            "type": kind,
            "strategy": activation.strategy,
            "dynamic": activation.dynamic,
            "symmetric": activation.symmetric,
        }
        if activation.strategy == "group":
            inputs["group_size"] = activation.group_size
    weights: dict[str, Any] = {
        "num_bits": scheme.bits,
        "type": kind,
        "strategy": _strategy(scheme),
        "symmetric": scheme.symmetric,
        "dynamic": False,
        "group_size": scheme.group_size if scheme.group_size > 0 and not scheme.block else None,
        "actorder": "group" if scheme.act_order else None,
        "observer": "minmax",
    }
    if scheme.block:
        weights["block_structure"] = list(scheme.block)
    return {
        "targets": list(targets),
        "weights": weights,
        "input_activations": inputs,
        "output_activations": None,
        "format": scheme.storage["layout"],
    }
