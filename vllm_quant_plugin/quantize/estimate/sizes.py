"""Bytes of a quantized module on disk. No torch."""

from __future__ import annotations

from vllm_quant_plugin.scheme import Scheme

# k_scale and v_scale, one float32 each.
KV_SCALE_BYTES = 8


def packed_bytes(scheme: Scheme, n: int, k: int, scale_bytes: int) -> int:
    """Bytes of a module's tensors in ``scheme.storage``.

    Args:
        scale_bytes: of one scale of compressed-tensors pack-quantized: the model's own dtype.
    """
    bits, groups = scheme.bits, scheme.groups(k)
    if scheme.storage == "awq":
        return (k * n * bits + groups * n * bits) // 8 + 2 * groups * n
    if scheme.storage == "gptq":
        # g_idx is written with and without act-order.
        return (k * n * bits + groups * n * bits) // 8 + 2 * groups * n + 4 * k
    if scheme.storage == "pack-quantized":
        words = n * -(-k * bits // 32) + (0 if scheme.symmetric else groups * -(-n * bits // 32))
        return 4 * words + scale_bytes * groups * n + 16
    if scheme.block:
        return n * k + 4 * -(-n // scheme.block[0]) * -(-k // scheme.block[1])
    if scheme.group_size == 0:
        return n * k + 4
    zeros = 0 if scheme.symmetric else n * groups
    return n * k + 4 * n * groups + zeros
