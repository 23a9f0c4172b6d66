"""What the storage formats can hold and how large it is: bytes, scale types, alignment. No torch."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vllm_quant_plugin.errors import UsageError
from vllm_quant_plugin.scheme import Scheme, StorageFormat

if TYPE_CHECKING:
    import torch

# k_scale and v_scale, one float32 each.
KV_SCALE_BYTES = 8
# Compressed-tensors forms of formats that cannot announce KV-cache scales.
_COMPRESSED: dict[str, StorageFormat] = {"awq": "pack-quantized", "fp8": "float-quantized"}


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


def stored_scale_dtype(scheme: Scheme, weight: torch.dtype) -> torch.dtype:
    """The dtype that scales are kept in: what the format's own tools write for weights of dtype ``weight``."""
    import torch

    if scheme.storage in ("awq", "gptq"):
        return torch.float16
    if scheme.storage in ("fp8", "int-quantized"):
        return torch.float32
    return weight


def alignment_problem(scheme: Scheme, n: int, k: int) -> str | None:
    """Why the format cannot hold an (N, K) weight of this scheme, None when it can."""
    if scheme.storage not in ("awq", "gptq"):
        return None
    # AWQ packs along N; GPTQ packs weights along K and zero points along N.
    packed = {"out_features": n, "in_features": k} if scheme.storage == "gptq" else {"out_features": n}
    for what, count in packed.items():
        if count * scheme.bits % 32 or (scheme.bits == 3 and count % 32):
            return f"{count} {what} of {scheme.bits} bits do not fill 32-bit words"
    return None


def storage_with_kv_scales(scheme: Scheme) -> Scheme:
    """The scheme in compressed-tensors, which can announce KV-cache scales.

    Raises:
        UsageError: it has no form there.
    """
    if scheme.storage == "gptq":
        raise UsageError(
            "GPTQ's layout has no place for KV-cache scales", "use another method, or leave --kv-cache out"
        )
    return replace(scheme, storage=_COMPRESSED.get(scheme.storage, scheme.storage))


def mixed_storage(scheme: Scheme) -> Scheme:
    """The scheme in a format that can hold modules of different bit widths: AWQ's has one for all."""
    return replace(scheme, storage="pack-quantized") if scheme.storage == "awq" else scheme
