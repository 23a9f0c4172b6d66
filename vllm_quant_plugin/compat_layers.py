"""The vLLM names that layer methods need: linear layers, experts, attention, the LM head."""

from __future__ import annotations

from vllm.distributed import cleanup_dist_env_and_memory
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.model_executor.layers.fused_moe import FusedMoEMethodBase, RoutedExperts
from vllm.model_executor.layers.fused_moe.activation import MoEActivation, apply_moe_activation
from vllm.model_executor.layers.fused_moe.config import FusedMoEQuantConfig
from vllm.model_executor.layers.fused_moe.moe_align_block_size import moe_align_block_size
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    LinearBase,
    LinearMethodBase,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
    UnquantizedLinearMethod,
)
from vllm.model_executor.layers.quantization.kv_cache import BaseKVCacheMethod
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    UnquantizedEmbeddingMethod,
    VocabParallelEmbedding,
)
from vllm.model_executor.models.utils import WeightsMapper

# The classes whose weight loaders say how a linear layer's weights are cut; a subclass may load otherwise.
PLAIN_LINEAR = (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)

__all__ = [
    "PLAIN_LINEAR",
    "Attention",
    "AttentionLayerBase",
    "BaseKVCacheMethod",
    "ColumnParallelLinear",
    "FusedMoEMethodBase",
    "FusedMoEQuantConfig",
    "LinearBase",
    "LinearMethodBase",
    "MergedColumnParallelLinear",
    "MoEActivation",
    "ParallelLMHead",
    "QKVParallelLinear",
    "ReplicatedLinear",
    "RoutedExperts",
    "RowParallelLinear",
    "UnquantizedEmbeddingMethod",
    "UnquantizedFusedMoEMethod",
    "UnquantizedLinearMethod",
    "VocabParallelEmbedding",
    "WeightsMapper",
    "apply_moe_activation",
    "cleanup_dist_env_and_memory",
    "moe_align_block_size",
]
