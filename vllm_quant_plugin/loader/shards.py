"""Which rows and columns of a checkpoint's matrices one tensor-parallel rank holds.

A vLLM layer multiplies by a matrix of one or more parts (q, k, v; gate, up), each a whole (N, K) matrix in the
checkpoint. A rank takes a range of rows of every part (column parallel) or a range of columns (row parallel):

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
from vllm_quant_plugin.errors import CheckpointError
from vllm_quant_plugin.formats.registry import legal_tp
from vllm_quant_plugin.loader.own_parts import own_parts
from vllm_quant_plugin.loader.part import Part, divided
from vllm_quant_plugin.schemes import StoredScheme


@dataclass(frozen=True)
class ShardPlan:
    """The parts of a matrix in order, and the columns [column_start, column_stop) of all of them that a rank holds.

    ``in_features`` is K of the whole matrix.
    """

    parts: tuple[Part, ...]
    in_features: int
    column_start: int
    column_stop: int

    @property
    def rows(self) -> int:
        """N of the whole matrix, of all parts and ranks."""
        return sum(part.rows for part in self.parts)

    @property
    def splits_columns(self) -> bool:
        return (self.column_start, self.column_stop) != (0, self.in_features)


def plan_linear(layer: Any, input_size: int, input_size_per_partition: int, output_size: int) -> ShardPlan:
    """The plan of a vLLM linear layer or LM head, from what its ``create_weights`` gets.

    Args:
        layer: has ``tp_rank`` and ``tp_size`` (vLLM sets them before ``create_weights``).
        input_size: K of the whole matrix; ``input_size_per_partition`` is this rank's share.
        output_size: N of the whole matrix over all parts and ranks.

    Raises:
        CheckpointError: the layer loads its parts in a way of its own that is not known here.
    """
    rank, size = layer.tp_rank, layer.tp_size
    own = own_parts(layer)
    if own is not None:
        return ShardPlan(own, input_size, 0, input_size)
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
            divided("q", layer.total_num_heads * layer.head_size, rank, size),
            divided("k", layer.total_num_kv_heads * layer.head_size, kv_rank, kv_size),
            divided("v", layer.total_num_kv_heads * value_size, kv_rank, kv_size),
        )
    elif isinstance(layer, layers.MergedColumnParallelLinear):
        parts = tuple(divided(i, rows, rank, size) for i, rows in enumerate(layer.output_sizes))
    elif isinstance(layer, layers.RowParallelLinear):
        parts = (Part(None, output_size, 0, output_size),)
        column = (input_size_per_partition * rank, input_size_per_partition * (rank + 1))
    elif isinstance(layer, layers.ColumnParallelLinear):
        if size > 1 and str(getattr(layer, "prefix", "")).endswith(".in_proj"):
            # Five parts that vLLM's Mamba 2 layer shards by a loader of its own, with the one group on every rank.
            raise CheckpointError(
                f"{layer.prefix}: a Mamba 2 layer whose group is on each of {size} ranks is not supported quantized",
                "set tensor_parallel_size to 1, or list the layer in modules_to_not_convert",
            )
        parts = (divided(None, output_size, rank, size),)
    else:
        parts = (Part(None, output_size, 0, output_size),)
    return ShardPlan(parts, input_size, *column)


def plan_experts(hidden: int, intermediate: int, rank: int, size: int, *, gated: bool) -> dict[str, ShardPlan]:
    """The plans of the two matrices of every expert of a mixture, by vLLM's names.

        w13 = stack(gate (w1), up (w3))    (2I, H), rows split over the ranks; without a gate, w1 alone
        w2  = down                         (H, I), columns split over the ranks

    Args:
        hidden, intermediate: H and I, of all ranks.
    """
    share = intermediate // size
    upper = tuple(divided(shard_id, intermediate, rank, size) for shard_id in (("w1", "w3") if gated else ("w1",)))
    down = (Part("w2", hidden, 0, hidden),)
    return {
        "w13": ShardPlan(upper, hidden, 0, hidden),
        "w2": ShardPlan(down, intermediate, share * rank, share * (rank + 1)),
    }


def check_columns(name: str, scheme: StoredScheme, in_features: int, tp_size: int) -> None:
    """Refuse a row-parallel split that cuts a quantization group.

    Raises:
        CheckpointError: naming the TP sizes that work.
    """
    legal = legal_tp(scheme, in_features, range(1, 65))
    if tp_size not in legal:
        step = scheme.block[1] if scheme.block else scheme.group_size
        sizes = ", ".join(map(str, legal))
        raise CheckpointError(
            f"{name}: in_features {in_features} / tensor_parallel_size {tp_size} is not a multiple of "
            f"group_size {step}",
            f"tensor_parallel_size {sizes} works" if len(legal) == 1 else f"tensor_parallel_size {sizes} work",
        )
