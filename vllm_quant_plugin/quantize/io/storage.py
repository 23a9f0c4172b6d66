"""How a recipe's schemes are stored: scale types, alignment, other formats. The formats answer. No torch at import."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_quant_plugin.errors import CheckpointError, UsageError
from vllm_quant_plugin.formats import format_named, get_format
from vllm_quant_plugin.schemes import StoredScheme

if TYPE_CHECKING:
    import torch

# k_scale and v_scale, one float32 each.
KV_SCALE_BYTES = 8
# As torch spells what safetensors calls BF16, F16 and F32.
MODEL_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
_GENERAL = "compressed-tensors"


def stored_scale_dtype(scheme: StoredScheme, weight: torch.dtype) -> torch.dtype:
    """The dtype that scales are kept in: what the format's own tools write for weights of dtype ``weight``."""
    import torch

    name = get_format(scheme).scale_dtype(scheme, str(weight).removeprefix("torch."))
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def alignment_problem(scheme: StoredScheme, n: int, k: int) -> str | None:
    """Why the format cannot hold an (N, K) weight of this scheme, None when it can."""
    try:
        get_format(scheme).tensors(scheme, n, k)
    except CheckpointError as error:
        return error.message
    return None


def storage_with_kv_scales(scheme: StoredScheme) -> StoredScheme:
    """The scheme in compressed-tensors, which can announce KV-cache scales.

    Raises:
        UsageError: it has no form there.
    """
    format = get_format(scheme)
    if format.keeps_layout:
        raise UsageError(
            f"{format.name}'s layout has no place for KV-cache scales", "use another method, or leave --kv-cache out"
        )
    return scheme if scheme.storage.format == _GENERAL else format_named(_GENERAL).store(scheme)


def mixed_storage(scheme: StoredScheme) -> StoredScheme:
    """The scheme in a format that can hold modules of different bit widths."""
    return scheme if get_format(scheme).mixed else format_named(_GENERAL).store(scheme)
