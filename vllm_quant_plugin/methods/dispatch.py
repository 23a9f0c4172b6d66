"""Which method serves which vLLM layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from vllm_quant_plugin import compat_layers as layers
from vllm_quant_plugin.errors import CheckpointError
from vllm_quant_plugin.loader.transform_tensors import TransformTensors
from vllm_quant_plugin.methods.kv_cache import TransformedKVCacheMethod, VqpKVCacheMethod
from vllm_quant_plugin.methods.linear import VqpLinearMethod
from vllm_quant_plugin.methods.moe import VqpMoEMethod
from vllm_quant_plugin.methods.transformed import TransformedEmbedding, TransformedMethod
from vllm_quant_plugin.schemes import ModelScheme, StoredScheme, names_module
from vllm_quant_plugin.transforms import ATTENTION, Application, PartTransforms


class SchemeSource(Protocol):
    """A quantization config, as far as its layers ask it."""

    model: ModelScheme
    transform_tensors: TransformTensors

    def transforms_of(self, prefix: str) -> list[PartTransforms]: ...
    def scheme_of(self, prefix: str, cls_name: str = "Linear") -> StoredScheme | None: ...


def method_for(config: SchemeSource, layer: torch.nn.Module, prefix: str) -> Any:
    """The method of ``layer``, None where vLLM's own default applies (embeddings, a 16-bit LM head).

    Raises:
        CheckpointError: parts that vLLM fuses have different schemes.
    """
    if isinstance(layer, layers.Attention):
        return _attention_method(config, prefix)
    if isinstance(layer, layers.AttentionLayerBase):
        _refuse_transforms(config.model.online_at(prefix.rpartition(".")[0], "Attention"), prefix, "latent attention")
        return None
    if isinstance(layer, layers.ParallelLMHead):
        name = prefix or "lm_head"
        scheme = config.model.scheme_for(name)
        if scheme is None:
            config.model.refuse_undeclared(name)
        inner = VqpLinearMethod(scheme, name) if scheme else None
        transforms = config.transforms_of(name)
        if not transforms:
            return inner
        outputs = [one for part in transforms for one in part.at("output")]
        _refuse_transforms(outputs, name, "the logits")
        return TransformedMethod(inner or layers.UnquantizedEmbeddingMethod(), transforms, config.transform_tensors)
    if isinstance(layer, layers.VocabParallelEmbedding):
        found = config.model.online_at(prefix, "Embedding")
        _refuse_transforms([one for one in found if one.location != "output"], prefix, "token ids")
        part = PartTransforms(prefix, found)
        inner = layers.UnquantizedEmbeddingMethod()
        return TransformedEmbedding(inner, [part], config.transform_tensors) if found else None
    if isinstance(layer, layers.LinearBase):
        scheme = config.scheme_of(prefix)
        method = VqpLinearMethod(scheme, prefix) if scheme else layers.UnquantizedLinearMethod()
        transforms = config.transforms_of(prefix)
        elsewhere = [one for part in transforms for one in part.applications if one.location in ATTENTION]
        _refuse_transforms(elsewhere, prefix, "queries and keys outside the attention")
        return TransformedMethod(method, transforms, config.transform_tensors) if transforms else method
    if isinstance(layer, layers.RoutedExperts):
        scheme = _experts_scheme(config, layer, prefix)
        if scheme is None:
            return layers.UnquantizedFusedMoEMethod(layer.moe_config)
        return VqpMoEMethod(scheme, layer.moe_config, prefix)
    return None


def _attention_method(config: SchemeSource, prefix: str) -> Any:
    """The layer ``attn`` inside a checkpoint's attention module."""
    module = prefix.rpartition(".")[0]
    found = config.model.online_at(module, "Attention")
    _refuse_transforms([one for one in found if one.location not in ATTENTION], module, "an attention's hidden states")
    if found:
        return TransformedKVCacheMethod(config, module, found, config.transform_tensors)
    return VqpKVCacheMethod(config)


def _refuse_transforms(found: Sequence[Application], name: str, what: str) -> None:
    """Raises CheckpointError where there are any."""
    if found:
        raise CheckpointError(
            f"{name}: transform_config: {found[0].describe()}: {what} cannot be transformed",
            "requantize the model without this transform",
        )


def _experts_scheme(config: SchemeSource, layer: Any, prefix: str) -> StoredScheme | None:
    """One scheme for all experts, read off expert 0: vLLM stacks them into one tensor."""
    stem = prefix.removesuffix(".routed_experts")
    if names_module(config.model.kept, stem):
        return None
    names = (layer.ckpt_gate_proj_name, layer.ckpt_down_proj_name, layer.ckpt_up_proj_name)
    for name in filter(None, names):
        _refuse_transforms(config.model.online_at(f"{stem}.0.{name}"), f"{stem}.0.{name}", "activations of experts")
    return config.model.scheme_for_fused(f"{stem}.0.w", [name for name in names if name])
