"""Fused query_key_value modules whose rows a model file of vLLM reorders with views of the stored tensors.

Bloom takes the first dimension of every tensor for the output features, whatever the format; Falcon asks the parameter
for the dimension, but cuts it between elements, so that a packed word must not span two heads. Elsewhere the views fail
inside vLLM, or reorder the wrong dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm_quant_plugin.errors import CheckpointError
from vllm_quant_plugin.formats.base import ITEM_SIZE, Headers
from vllm_quant_plugin.formats.registry import get_format
from vllm_quant_plugin.schemes import ModelScheme, StoredScheme


def refuse_unordered(model: ModelScheme, modules: Mapping[str, Headers], hf_config: Any) -> None:
    """Raises CheckpointError where vLLM's model file cannot put a module's rows in order.

    Args:
        modules: every module's tensors in the checkpoint.
    """
    architectures = getattr(hf_config, "architectures", None) or ()
    family = next((name for name in ("Bloom", "Falcon") if f"{name}ForCausalLM" in architectures), None)
    if family is None:
        return
    size, heads = int(hf_config.hidden_size), int(hf_config.num_attention_heads)
    for name, tensors in modules.items():
        if not name.endswith(".query_key_value"):
            continue
        scheme = model.scheme_for(name)
        if scheme is not None and not _is_ordered(family, scheme, tensors, size // heads, size):
            raise CheckpointError(
                f"{name}: vLLM's model file of {family} cannot reorder the rows of {scheme.describe()}",
                "requantize the model as compressed-tensors or FP8, which store rows first",
            )


def _is_ordered(family: str, scheme: StoredScheme, tensors: Headers, head_dim: int, size: int) -> bool:
    specs = [spec for leaf, spec in get_format(scheme).tensors(scheme, 3 * size, size).items() if leaf in tensors]
    if family == "Bloom":
        return all(spec.output_dim == 0 for spec in specs)
    packed = (spec for spec in specs if spec.packed_dim is not None and spec.packed_dim == spec.output_dim)
    return all(head_dim * scheme.bits % (8 * ITEM_SIZE[spec.dtypes[0]]) == 0 for spec in packed)
