"""Modules whose rows a model file of vLLM reorders while loading: refused where it misses some of the stored tensors.

Bloom takes the first dimension of every tensor of query_key_value for the output features, whatever the format; Falcon
asks the parameter for the dimension, but cuts it between elements, so that a packed word must not span two heads.
Llama 4 reorders q and k for its rotary embedding by the names of their tensors: others stay as they are, silently.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm_quant_plugin.errors import CheckpointError
from vllm_quant_plugin.formats.base import ITEM_SIZE, Headers, TensorSpec
from vllm_quant_plugin.formats.registry import get_format
from vllm_quant_plugin.schemes import ModelScheme, StoredScheme

_REORDERED = {
    "BloomForCausalLM": ("query_key_value",),
    "FalconForCausalLM": ("query_key_value",),
    "Llama4ForCausalLM": ("q_proj", "k_proj"),
    "Llama4ForConditionalGeneration": ("q_proj", "k_proj"),
}
# What Llama 4's model file reorders.
_LLAMA_4_LEAVES = ("weight", "weight_packed", "weight_scale")


def refuse_unordered(model: ModelScheme, modules: Mapping[str, Headers], hf_config: Any) -> None:
    """Raises CheckpointError where vLLM's model file cannot put a module's rows in order.

    Args:
        modules: every module's tensors in the checkpoint.
    """
    family = next((name for name in getattr(hf_config, "architectures", None) or () if name in _REORDERED), None)
    if family is None:
        return
    for name, tensors in modules.items():
        if name.rpartition(".")[2] not in _REORDERED[family] or "vision" in name:
            continue
        scheme = model.scheme_for(name)
        if scheme is not None and not _is_ordered(family, scheme, tensors, hf_config):
            raise CheckpointError(
                f"{name}: vLLM's model file of {family} cannot reorder the rows of {scheme.describe()} as stored here",
                "requantize the model as compressed-tensors with symmetric weights or FP8 per channel, or leave "
                "this module in 16 bits",
            )


def _is_ordered(family: str, scheme: StoredScheme, tensors: Headers, hf_config: Any) -> bool:
    sizes = (256, 256)  # any: which dimension is which does not depend on them
    specs: dict[str, TensorSpec] = {
        leaf: spec for leaf, spec in get_format(scheme).tensors(scheme, *sizes).items() if leaf in tensors
    }
    if family == "BloomForCausalLM":
        return all(spec.output_dim == 0 for spec in specs.values())
    if family == "FalconForCausalLM":
        head_dim = int(hf_config.hidden_size) // int(hf_config.num_attention_heads)
        packed = [s for s in specs.values() if s.packed_dim is not None and s.packed_dim == s.output_dim]
        return all(head_dim * scheme.bits % (8 * ITEM_SIZE[spec.dtypes[0]]) == 0 for spec in packed)
    if scheme.block:
        return False
    return all(spec.output_dim is None or leaf in _LLAMA_4_LEAVES for leaf, spec in specs.items())
