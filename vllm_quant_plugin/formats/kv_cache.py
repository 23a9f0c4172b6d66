"""``kv_cache_scheme``: an FP8 KV cache with scales from the checkpoint, as compressed-tensors writes it. No torch.

Source: vLLM, compressed_tensors.py, ``CompressedTensorsKVCacheMethod.validate_kv_cache_scheme``.
"""

from __future__ import annotations

from vllm_quant_plugin.errors import CheckpointError
from vllm_quant_plugin.formats.fields import Enumeration, Fields

KEY = "kv_cache_scheme"
TYPE = Enumeration({"float": "float"})
STRATEGY = Enumeration({"tensor": "tensor", "attn_head": "attn_head"})


def kv_cache_of(fields: Fields) -> str | None:
    """``fp8`` where the config names scales of an FP8 KV cache, else None.

    Raises:
        CheckpointError: another cache than FP8, or scales that vLLM does not read.
    """
    found = fields.get(KEY)
    if not found:
        return None
    scheme = Fields(found, f"quantization_config.{KEY}")
    kind = scheme.choice("type", of=TYPE, default="int")
    bits = scheme.integer("num_bits", default=8)
    scheme.choice("strategy", of=STRATEGY, default="tensor")
    symmetric = scheme.boolean("symmetric", default=True, words=True)
    if kind != "float" or bits != 8 or not symmetric:
        raise CheckpointError(
            f"quantization_config.{KEY}: {'' if symmetric else 'asymmetric '}{kind} with {bits} bits is not supported",
            "symmetric float with 8 bits is; remove the key for a 16-bit KV cache",
        )
    return "fp8"
