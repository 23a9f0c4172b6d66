"""Random weights in a layer's own format, for benchmarks without a checkpoint (``--load-format dummy``)."""

from __future__ import annotations

import torch

from vllm_quant_kernels.canonical import CanonicalWeight, kind_of
from vllm_quant_plugin import compat
from vllm_quant_plugin.formats import get_format
from vllm_quant_plugin.loader.part import ShardId
from vllm_quant_plugin.loader.shards import ShardPlan
from vllm_quant_plugin.schemes import StoredScheme


def dummy_weights_requested() -> bool:
    """Whether vLLM was asked for random weights."""
    return str(compat.get_current_vllm_config().load_config.load_format) == "dummy"


def random_tensors(scheme: StoredScheme, plan: ShardPlan) -> dict[ShardId, dict[str, torch.Tensor]]:
    """Tensors of every part of a matrix as the checkpoint would hold them; the same for the same plan."""
    generator = torch.Generator().manual_seed(0)
    return {part.shard_id: _random_module(scheme, part.rows, plan.in_features, generator) for part in plan.parts}


def _random_module(scheme: StoredScheme, n: int, k: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Tensors of a random (n, k) module with small weights."""
    groups = scheme.groups(k)
    codes = torch.randint(0, 1 << scheme.bits, (n, k), dtype=torch.uint8, generator=generator)
    if not scheme.is_int:
        codes &= 0xBF  # magnitude below 2: never NaN
    scales = torch.full((n, groups), 0.01 / (1 << scheme.bits))
    zeros = None if scheme.symmetric or not scheme.is_int else torch.full((n, groups), 1 << (scheme.bits - 1))
    g_idx = (torch.arange(k) // scheme.group_of(k)).int() if scheme.act_order else None
    weight = CanonicalWeight(codes, scales, scheme.bits, scheme.group_of(k), zeros, kind_of(scheme.value), g_idx)
    tensors = get_format(scheme).pack(weight, scheme)
    if scheme.activation is not None and not scheme.activation.dynamic:
        tensors["input_scale"] = torch.tensor(0.05)
    return tensors
