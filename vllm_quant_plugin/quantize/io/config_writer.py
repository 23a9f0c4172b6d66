"""``quantization_config`` in each format's standard form, as the format's own tools write it. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vllm_quant_plugin.checkpoint import Checkpoint
from vllm_quant_plugin.errors import UsageError
from vllm_quant_plugin.quantize.modules import FUSED_NAMES, QuantizedLinear, kept_modules, siblings
from vllm_quant_plugin.scheme import PER_CHANNEL, PER_TENSOR, Scheme

if TYPE_CHECKING:
    from vllm_quant_plugin.quantize.recipe import Recipe

CT_VERSION = "0.17.0"


def _strategy(scheme: Scheme) -> str:
    if scheme.block:
        return "block"
    return {PER_CHANNEL: "channel", PER_TENSOR: "tensor"}.get(scheme.group_size, "group")


def ct_group(scheme: Scheme, targets: list[str]) -> dict[str, Any]:
    """One entry of compressed-tensors' ``config_groups``."""
    kind = "int" if scheme.kind == "int" else "float"
    activation = scheme.activation
    inputs = None
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
        "targets": targets,
        "weights": weights,
        "input_activations": inputs,
        "output_activations": None,
        "format": scheme.storage,
    }


KV_CACHE_SCHEME = {
    "num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True, "observer": "minmax"
}  # fmt: skip


def compressed_tensors_config(
    groups: list[tuple[Scheme, list[str]]], ignore: list[str], *, kv_cache: bool = False
) -> dict[str, Any]:
    """The config of a compressed-tensors checkpoint with the given (scheme, targets) groups.

    Args:
        kv_cache: the checkpoint holds scales of an FP8 KV cache.
    """
    layouts = {scheme.storage for scheme, _ in groups}
    return {
        "quant_method": "compressed-tensors",
        "format": layouts.pop() if len(layouts) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "version": CT_VERSION,
        "config_groups": {f"group_{i}": ct_group(scheme, targets) for i, (scheme, targets) in enumerate(groups)},
        "ignore": ignore,
        "kv_cache_scheme": KV_CACHE_SCHEME if kv_cache else None,
        "global_compression_ratio": None,
    }


def _fused_pattern(names: tuple[str, ...]) -> str:
    """Regular expression for modules that vLLM fuses, by their own names and by the fused one."""
    stem = names[0].rpartition(".")[0]
    leaves = [name.rpartition(".")[2] for name in names]
    fused = FUSED_NAMES.get(tuple(leaves))
    parts = "|".join([*leaves, fused] if fused else leaves)
    return f".*{re.escape(stem)}[.]({parts})$"


def _gptq_dynamic(common: Scheme, kept: list[str], schemes: Mapping[str, Scheme]) -> dict[str, Any]:
    """GPTQModel's ``dynamic``: what differs from the config's own bits and groups."""
    found: dict[str, Any] = {f"-:.*{name.replace('.', '[.]')}": {} for name in kept if name != "lm_head"}
    for name, scheme in schemes.items():
        if scheme != common:
            found[f"+:{_fused_pattern(siblings(name))}"] = {
                "bits": scheme.bits, "group_size": scheme.group_size, "sym": scheme.symmetric,
                "desc_act": scheme.act_order,
            }  # fmt: skip
    return found


def config_for(
    recipe: Recipe, checkpoint: Checkpoint, modules: Sequence[QuantizedLinear], quantizer: str
) -> dict[str, Any]:
    """``quantization_config`` of ``checkpoint`` with ``modules`` quantized by ``recipe``."""
    schemes = {m.name: m.scheme for m in modules}
    return quantization_config(
        recipe.scheme, kept_modules(checkpoint, schemes), schemes if recipe.rules else None,
        kv_cache=recipe.kv_cache, quantizer=quantizer, provenance=recipe.algorithm.provenance(recipe.options),
    )  # fmt: skip


def quantization_config(
    scheme: Scheme,
    kept: list[str],
    schemes: Mapping[str, Scheme] | None = None,
    *,
    kv_cache: bool = False,
    quantizer: str = "",
    provenance: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What goes into config.json.

    Args:
        scheme: of the linear modules.
        kept: matrices that stayed in 16 bits.
        schemes: mixed precision: the scheme of each quantized module.
        kv_cache: the checkpoint holds scales of an FP8 KV cache.
        quantizer: ``name:version`` of what made the codes.
        provenance: how the codes were found; GPTQ's config records it.
    """
    if scheme.storage == "awq":
        return {
            "quant_method": "awq",
            "version": "gemm",
            "bits": scheme.bits,
            "group_size": scheme.group_size,
            "zero_point": not scheme.symmetric,
            "modules_to_not_convert": [name for name in kept if name != "lm_head"] or None,
        }
    if scheme.storage == "gptq":
        dynamic = _gptq_dynamic(scheme, kept, schemes or {})
        return {
            "quant_method": "gptq",
            "checkpoint_format": "gptq",
            "bits": scheme.bits,
            "group_size": scheme.group_size,
            "desc_act": scheme.act_order,
            "sym": scheme.symmetric,
            **(provenance or {}),
            "lm_head": False,
            "pack_dtype": "int32",
            **({"meta": {"quantizer": [quantizer]}} if quantizer else {}),
            **({"dynamic": dynamic} if dynamic else {}),
        }
    if scheme.storage == "fp8":
        block = {"weight_block_size": list(scheme.block)} if scheme.block else {}
        return {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "static" if scheme.activation and not scheme.activation.dynamic else "dynamic",
            "ignored_layers": kept,
            "modules_to_not_convert": kept,
            **block,
        }
    if scheme.storage in ("pack-quantized", "int-quantized", "float-quantized"):
        if schemes is None:
            return compressed_tensors_config([(scheme, ["Linear"])], kept, kv_cache=kv_cache)
        groups: dict[Scheme, list[str]] = {}
        for name, chosen in schemes.items():
            groups.setdefault(chosen, []).append(name)
        return compressed_tensors_config(list(groups.items()), kept, kv_cache=kv_cache)
    raise UsageError(f"{scheme.storage} has no quantization_config here", "use another method")
