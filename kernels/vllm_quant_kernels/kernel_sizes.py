"""Sizes of packed weights that several kernels share. No torch."""

from __future__ import annotations

from vllm_quant_kernels.scheme import Codebook, Int, VectorCodebook, WeightScheme
from vllm_quant_kernels.sizes import round_up

_ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4}
_NARROW = 1  # E8M0, E4M3 and small integers
# Of a scale in bytes, of a zero point, of an index.
ZERO_BYTES, INDEX_BYTES = 1, 4
RUN = 16


def scale_bytes(scheme: WeightScheme, itemsize: int) -> int:
    """Bytes of one scale; ``itemsize`` where the scheme leaves its dtype open."""
    return itemsize if scheme.scale.dtype == "float" else _ITEMSIZE.get(scheme.scale.dtype, _NARROW)


def zero_bytes(scheme: WeightScheme) -> int:
    """Bytes of one zero point; 0 without zero points."""
    return ZERO_BYTES if isinstance(scheme.value, Int) and not scheme.symmetric else 0


def group_count(scheme: WeightScheme, k: int, full_k: int | None) -> int:
    """Groups whose scales a weight of K input features keeps: with act-order, those of the whole matrix."""
    return scheme.groups(full_k or k) if scheme.act_order else scheme.groups(k)


def run_ends(scheme: WeightScheme, k: int, full_k: int | None) -> list[int]:
    """Where the run of each group ends, in columns sorted by group with each run padded to 16.

    The columns of a row-parallel shard of an act-order weight belong to any group: their runs are taken as equally
    long, padded by 8 columns each.
    """
    groups, ends, total = group_count(scheme, k, full_k), [], 0
    size = scheme.group_of(full_k or k)
    for group in range(groups):
        if full_k is not None and full_k != k and scheme.act_order:
            total = round_up(k * (group + 1) // groups + 8 * (group + 1), RUN)
        else:
            total += round_up(min(size, k - group * size), RUN)
        ends.append(total)
    return ends


def static_bytes(scheme: WeightScheme) -> int:
    """Bytes of a static activation range: a float32 scale and, where it is asymmetric, an int32 zero point."""
    act = scheme.activation
    if act is None or act.dynamic:
        return 0
    return 4 if act.symmetric else 8


def table_bytes(scheme: WeightScheme, n: int) -> int:
    """Bytes of a codebook in float32."""
    value = scheme.value
    if isinstance(value, VectorCodebook):
        return 4 * value.dim << value.code_bits
    if isinstance(value, Codebook):
        return (4 << value.bits) * (n if value.scope == "channel" else 1)
    return 0


def super_scale_bytes(scheme: WeightScheme, n: int, groups: int) -> int:
    """Bytes of the second level of scales."""
    scale = scheme.scale
    if scale.per_super is None:
        return 0
    return _ITEMSIZE[scale.super_dtype] * (n * -(-groups // scale.per_super) if scale.per_super else 1)
