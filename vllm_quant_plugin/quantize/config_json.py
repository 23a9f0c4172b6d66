"""``quantization_config`` in each format's standard form, as the format's own tools write it. No torch."""

from __future__ import annotations

from typing import Any

from vllm_quant_plugin.errors import UsageError
from vllm_quant_plugin.quantize.recipe import Recipe
from vllm_quant_plugin.scheme import PER_CHANNEL, PER_TENSOR, Scheme

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


def compressed_tensors_config(groups: list[tuple[Scheme, list[str]]], ignore: list[str]) -> dict[str, Any]:
    """The config of a compressed-tensors checkpoint with the given (scheme, targets) groups."""
    layouts = {scheme.storage for scheme, _ in groups}
    return {
        "quant_method": "compressed-tensors",
        "format": layouts.pop() if len(layouts) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "version": CT_VERSION,
        "config_groups": {f"group_{i}": ct_group(scheme, targets) for i, (scheme, targets) in enumerate(groups)},
        "ignore": ignore,
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def quantization_config(recipe: Recipe, kept: list[str], quantizer: str) -> dict[str, Any]:
    """What goes into config.json.

    Args:
        recipe: how the linear modules were quantized.
        kept: matrices that stayed in 16 bits.
        quantizer: ``name:version`` of what made the codes.
    """
    scheme = recipe.scheme
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
        return {
            "quant_method": "gptq",
            "checkpoint_format": "gptq",
            "bits": scheme.bits,
            "group_size": scheme.group_size,
            "desc_act": scheme.act_order,
            "sym": scheme.symmetric,
            "static_groups": recipe.static_groups,
            "damp_percent": recipe.damp,
            "true_sequential": True,
            "lm_head": False,
            "pack_dtype": "int32",
            "meta": {"quantizer": [quantizer]},
            **({"dynamic": {f"-:.*{name.replace('.', '[.]')}": {} for name in kept if name != "lm_head"}}
               if len(kept) > 1 else {}),
        }  # fmt: skip
    if scheme.storage == "fp8":
        block = {"weight_block_size": list(scheme.block)} if scheme.block else {}
        return {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "ignored_layers": kept,
            "modules_to_not_convert": kept,
            **block,
        }
    if scheme.storage in ("pack-quantized", "int-quantized", "float-quantized"):
        return compressed_tensors_config([(scheme, ["Linear"])], kept)
    raise UsageError(f"no config form for {scheme.storage}", "use another method")
