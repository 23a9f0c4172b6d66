"""Which method serves which vLLM layer."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from vllm_quant_plugin import compat_layers as layers
from vllm_quant_plugin.methods.kv_cache import VqpKVCacheMethod
from vllm_quant_plugin.methods.linear import VqpLinearMethod
from vllm_quant_plugin.methods.moe import VqpMoEMethod
from vllm_quant_plugin.schemes import ModelScheme, StoredScheme


class SchemeSource(Protocol):
    """A quantization config, as far as its layers ask it."""

    model: ModelScheme

    def scheme_of(self, prefix: str, cls_name: str = "Linear") -> StoredScheme | None: ...


def method_for(config: SchemeSource, layer: torch.nn.Module, prefix: str) -> Any:
    """The method of ``layer``, None where vLLM's own default applies (embeddings, a 16-bit LM head).

    Raises:
        CheckpointError: parts that vLLM fuses have different schemes.
    """
    if isinstance(layer, layers.Attention):
        return VqpKVCacheMethod(config)
    if isinstance(layer, layers.ParallelLMHead):
        name = prefix or "lm_head"
        scheme = config.model.scheme_for(name)
        return VqpLinearMethod(scheme, name) if scheme else None
    if isinstance(layer, layers.LinearBase):
        scheme = config.scheme_of(prefix)
        return VqpLinearMethod(scheme, prefix) if scheme else layers.UnquantizedLinearMethod()
    if isinstance(layer, layers.RoutedExperts):
        scheme = _experts_scheme(config, layer, prefix)
        if scheme is None:
            return layers.UnquantizedFusedMoEMethod(layer.moe_config)
        return VqpMoEMethod(scheme, layer.moe_config, prefix)
    return None


def _experts_scheme(config: SchemeSource, layer: Any, prefix: str) -> StoredScheme | None:
    """One scheme for all experts, read off expert 0: vLLM stacks them into one tensor."""
    stem = prefix.removesuffix(".routed_experts")
    names = (layer.ckpt_gate_proj_name, layer.ckpt_down_proj_name, layer.ckpt_up_proj_name)
    return config.model.scheme_for_fused(f"{stem}.0.w", [name for name in names if name])
