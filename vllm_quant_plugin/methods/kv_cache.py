"""KV-cache scales from the checkpoint."""

from __future__ import annotations

from vllm_quant_plugin import compat_layers as layers


class VqpKVCacheMethod(layers.BaseKVCacheMethod):
    """vLLM's own handling: ``k_scale`` and ``v_scale`` are read when present and 1.0 otherwise."""
