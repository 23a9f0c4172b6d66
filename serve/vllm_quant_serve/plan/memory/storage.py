"""Bytes that one rank holds of one parameter, by quantization scheme. No torch.

The figures are those of the parameters that vLLM's methods create for the storage format (codes, scales, zero points,
permutation), which is also what a rank holds while it loads, or of what the plugin's kernel keeps. Formats and kernels
answer; this module only cuts.
"""

from __future__ import annotations

import math
from typing import Literal

from vllm_quant_kernels.kernel import Device
from vllm_quant_kernels.registry import choose
from vllm_quant_plugin.architecture.arch import Parameter
from vllm_quant_plugin.architecture.placement import Placement, padded_vocab
from vllm_quant_plugin.formats import get_format
from vllm_quant_plugin.formats.base import ITEM_SIZE
from vllm_quant_plugin.schemes import StoredScheme

Server = Literal["", "cpu", "cuda"]


def local_shape(parameter: Parameter, place: Placement) -> tuple[int, tuple[int, ...]]:
    """Number of identical tensors and their shape on the fullest rank."""
    shape, count, role = parameter.shape, parameter.count, parameter.role
    if role.startswith("expert"):
        if place.expert_parallel:
            return -(-count // place.expert_ranks), shape
        # Without expert parallelism data-parallel ranks of a MoE model cut experts, too (FusedMoE flattens DP into TP).
        cut = place.tp * place.dp
        if role == "expert_column":
            return count, (-(-shape[0] // cut), *shape[1:])
        return count, (*shape[:-1], -(-shape[-1] // cut)) if role == "expert_row" else shape
    if role == "column":
        return count, (-(-shape[0] // place.tp), *shape[1:])
    if role == "row":
        return count, (*shape[:-1], -(-shape[-1] // place.tp)) if len(shape) > 1 else shape
    if role == "kv":
        per_head = shape[0] // parameter.heads
        return count, (max(1, parameter.heads // place.tp) * per_head, *shape[1:])
    if role == "vocab":
        return count, (-(-padded_vocab(shape[0]) // place.tp), *shape[1:])
    return count, shape


def parameter_bytes(
    parameter: Parameter, place: Placement, scheme: StoredScheme | None, itemsize: int, plugin: Server = ""
) -> int:
    """Bytes of ``parameter`` on one rank.

    Args:
        plugin: the device whose packed layout of this plugin holds the weight, "" for vLLM's own methods.
        scheme: the module's scheme, None for ``itemsize`` bytes per element.
        itemsize: bytes per element of the model's dtype.
    """
    count, shape = local_shape(parameter, place)
    if parameter.nbytes:
        return math.ceil(parameter.nbytes * count * math.prod(shape) / (parameter.count * math.prod(parameter.shape)))
    if scheme is None or not parameter.linear or len(shape) != 2:
        return count * math.prod(shape) * (parameter.itemsize or itemsize)
    rows_cut = parameter.role in ("row", "expert_row") and shape[1] != parameter.shape[1]
    full_in = parameter.shape[1] if rows_cut else shape[1]
    if plugin:
        return count * kernel_bytes(scheme, shape[0], shape[1], full_in, itemsize, plugin)
    form, expert = get_format(scheme), parameter.role.startswith("expert")
    if expert:
        scheme = form.expert_scheme(scheme, *(shape if parameter.role == "expert_column" else reversed(shape)))
    shared = form.module_bytes(scheme, expert=expert) if parameter.fused == "next" else 0
    own = form.in_tree_bytes(scheme, shape[0], shape[1], full_in, itemsize)
    extra = form.expert_bytes(scheme, shape[0], itemsize, first=parameter.fused != "next") if expert else 0
    return count * (own + extra - shared)


def kernel_bytes(scheme: StoredScheme, n: int, k: int, full_k: int, itemsize: int, device: Server) -> int:
    """Bytes that this plugin's kernel keeps of one rank's (n, k) shard of a matrix with ``full_k`` input features.

    Args:
        itemsize: bytes per element of the model's dtype.
        device: where the kernel runs.
    """
    dtype = {4: "float32", 2: "bfloat16"}[itemsize]
    scales = ITEM_SIZE[get_format(scheme).scale_dtype(scheme, dtype)]
    kernel = choose(scheme.weight, n, k, Device(device), dtype).kernel
    return kernel.packed_bytes(scheme.weight, n, k, full_k, scales)
