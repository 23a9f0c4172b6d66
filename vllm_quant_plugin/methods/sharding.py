"""Which rows and columns of a checkpoint's matrices one tensor-parallel rank holds.

Each vLLM layer is one or more logical parts (q, k, v; gate, up), each a whole (N, K) matrix in
the checkpoint. A rank takes a row range of every part (column parallel) or a column range
(row parallel):

    column parallel, qkv, 2 ranks        row parallel, 2 ranks
    rank 0 | rank 1                      K: | rank 0 | rank 1 |
    q rows   q rows
    k rows   k rows
    v rows   v rows
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm_quant_plugin import compat_layers as layers

ShardId = str | int | tuple[int, ...] | None


@dataclass(frozen=True)
class Part:
    """One checkpoint matrix of a layer.

    Attributes:
        shard_id: what vLLM's weight loader calls it; None when the layer is a single matrix.
        rows: N of the whole matrix.
        start, stop: the rows that this rank holds.
        pad_to: rows to fill up to with zeros (a padded vocabulary), else 0.
    """

    shard_id: ShardId
    rows: int
    start: int
    stop: int
    pad_to: int = 0


@dataclass(frozen=True)
class ShardPlan:
    """A layer's parts in order, and the input columns [column_start, column_stop) of all of them."""

    parts: tuple[Part, ...]
    in_features: int
    column_start: int
    column_stop: int

    @property
    def splits_columns(self) -> bool:
        return (self.column_start, self.column_stop) != (0, self.in_features)


def _share(shard_id: ShardId, rows: int, rank: int, size: int) -> Part:
    return Part(shard_id, rows, rows // size * rank, rows // size * (rank + 1))


def plan_shards(layer: Any, input_size: int, input_size_per_partition: int, output_size: int) -> ShardPlan:
    """The plan of a vLLM linear layer or LM head, as its ``create_weights`` sees it.

    Args:
        layer: has ``tp_rank`` and ``tp_size`` (vLLM sets them before ``create_weights``).
        input_size: K of the whole matrix; ``input_size_per_partition`` is this rank's share.
        output_size: N of the whole matrix over all parts and ranks.
    """
    rank, size = layer.tp_rank, layer.tp_size
    column = (0, input_size)
    parts: tuple[Part, ...]
    if isinstance(layer, layers.VocabParallelEmbedding):
        indices = layer.shard_indices
        start, stop = indices.org_vocab_start_index, indices.org_vocab_end_index
        parts = (Part(None, layer.org_vocab_size, start, stop, layer.num_embeddings_per_partition),)
    elif isinstance(layer, layers.QKVParallelLinear):
        kv_rank, kv_size = rank // layer.num_kv_head_replicas, size // layer.num_kv_head_replicas
        value_size = getattr(layer, "v_head_size", layer.head_size)
        parts = (
            _share("q", layer.total_num_heads * layer.head_size, rank, size),
            _share("k", layer.total_num_kv_heads * layer.head_size, kv_rank, kv_size),
            _share("v", layer.total_num_kv_heads * value_size, kv_rank, kv_size),
        )
    elif isinstance(layer, layers.MergedColumnParallelLinear):
        parts = tuple(_share(i, rows, rank, size) for i, rows in enumerate(layer.output_sizes))
    elif isinstance(layer, layers.RowParallelLinear):
        parts = (Part(None, output_size, 0, output_size),)
        column = (input_size_per_partition * rank, input_size_per_partition * (rank + 1))
    elif isinstance(layer, layers.ColumnParallelLinear):
        parts = (_share(None, output_size, rank, size),)
    else:
        parts = (Part(None, output_size, 0, output_size),)
    return ShardPlan(parts, input_size, *column)
