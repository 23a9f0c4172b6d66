"""What vLLM 0.33 serves through ``--quantization humming`` on a CUDA GPU, read from its sources. No torch.

Sources: vllm/model_executor/layers/quantization/humming.py of vLLM 0.33.0 and humming/schema/ of humming-kernels
0.1.19, the version that it requires. Nothing here was run: it takes a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Config = Mapping[str, Any]


def why_humming_rejects(config: Config, *, quantized_lm_head: bool = False) -> str | None:
    """The first reason for which Humming does not serve a checkpoint with its own numbers, None where it does.

    Args:
        config: the checkpoint's ``quantization_config``.
        quantized_lm_head: the LM head's weight is stored quantized.
    """
    if quantized_lm_head:
        return "quantized `lm_head`"
    for layer in _layers(config):
        reason = _CHECKS.get(config["quant_method"], _unknown)(layer)
        if reason:
            return reason
    if config.get("kv_cache_scheme"):
        return "KV-cache scales are not read"
    return None


def _layers(config: Config) -> Iterator[dict[str, Any]]:
    """The config of a module without an override, then of the modules of each override in ``dynamic``."""
    yield dict(config)
    for pattern, override in (config.get("dynamic") or {}).items():
        if not pattern.startswith("-"):
            yield {**config, **override}


def _unknown(layer: Config) -> str | None:
    return f"quant_method {layer['quant_method']}"


def _awq(layer: Config) -> str | None:
    if layer["bits"] != 4:
        # AWQWeightSchema gives every width the packed factor of 4 bits, by which vLLM cuts fused layers.
        return f"AWQ with {layer['bits']} bits"
    return _grouped(layer)


def _gptq(layer: Config) -> str | None:
    if layer.get("desc_act"):
        return "act-order"
    if not layer.get("sym", True) and layer.get("checkpoint_format") != "gptq_v2":
        return "v1 zero points are taken as stored, one too low"
    return _grouped(layer)


def _grouped(layer: Config) -> str | None:
    # Scales get K // group_size rows.
    return "group_size -1" if layer["group_size"] <= 0 else None


def _compressed_tensors(layer: Config) -> str | None:
    groups = [group for group in layer["config_groups"].values() if "Linear" in group["targets"]]
    if len(groups) != 1:
        return "several groups of modules, or none for `Linear`"
    weights, activations = groups[0]["weights"], groups[0].get("input_activations")
    if weights.get("actorder") not in (None, "weight", "static"):
        return "act-order"
    if layer["format"] == "int-quantized" and not weights["symmetric"]:
        return "zero points of `int-quantized`"
    if activations and not activations["symmetric"]:
        return "asymmetric activations"
    return None


def _fp8(layer: Config) -> str | None:
    return None


_CHECKS = {"awq": _awq, "gptq": _gptq, "compressed-tensors": _compressed_tensors, "fp8": _fp8}
