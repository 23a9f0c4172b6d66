"""Layers of vLLM's model files that load their parts otherwise than the classes of its linear.py.

vLLM multiplies the size of a part that every rank holds by the number of ranks, so that a rank's share has the part's
own size, and loads rank 0's share everywhere. The tests scan vLLM's sources for further classes of the kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from vllm_quant_plugin import compat_layers as layers
from vllm_quant_plugin.errors import CheckpointError
from vllm_quant_plugin.loader.part import Part, divided, replicated

Parts = tuple[Part, ...]


def _merged(on_every_rank: Callable[[Any], Iterable[int]]) -> Callable[[Any], Parts]:
    """Parts of a merged layer of which some, by their numbers, are on every rank."""

    def parts_of(layer: Any) -> Parts:
        everywhere = set(on_every_rank(layer))
        return tuple(
            replicated(i, rows // layer.tp_size) if i in everywhere else divided(i, rows, layer.tp_rank, layer.tp_size)
            for i, rows in enumerate(layer.output_sizes)
        )

    return parts_of


def _kv_ranks(layer: Any) -> tuple[int, int]:
    """Rank and number of ranks as far as KV heads are concerned: several ranks may hold the same head."""
    replicas = layer.num_kv_head_replicas
    return layer.tp_rank // replicas, layer.tp_size // replicas


def _minimax_m3(layer: Any) -> Parts:
    q, kv = layer.total_num_heads * layer.head_size, layer.total_num_kv_heads * layer.head_size
    ranks = _kv_ranks(layer)
    return (
        divided("q", q, layer.tp_rank, layer.tp_size),
        divided("k", kv, *ranks),
        divided("v", kv, *ranks),
        divided("index_q", layer.total_num_index_heads * layer.index_head_size, *ranks),
        replicated("index_k", layer.index_head_size),
    )


def _qwen4_qsa(layer: Any) -> Parts:
    q, k, v, index = layer.output_sizes
    replicas, ranks = layer.num_kv_head_replicas, _kv_ranks(layer)
    return (
        divided(0, q, layer.tp_rank, layer.tp_size),
        divided(1, k // replicas, *ranks),
        divided(2, v // replicas, *ranks),
        replicated(3, index // layer.tp_size),
    )


OWN_PARTS: dict[str, Callable[[Any], Parts]] = {
    "KimiK3MergedQKVGateLinear": _merged(lambda layer: (0, 1)),
    "MinimaxM3QKVParallelLinearWithIndexer": _minimax_m3,
    "Qwen4ExpQSAQKVIndexerLinear": _qwen4_qsa,
    "_Glm5NextMergedColumnParallelLinear": _merged(lambda layer: layer.replicated_shard_ids),
    "_KimiGDNMergedColumnParallelLinear": _merged(lambda layer: (layer.replicated_shard_id,)),
}
_LOADERS = ("weight_loader", "weight_loader_v2")


def own_parts(layer: Any) -> Parts | None:
    """The parts of a layer of these classes; None for those of vLLM's linear.py.

    Raises:
        CheckpointError: another class that loads in its own way.
    """
    cls = type(layer)
    found = next((OWN_PARTS[base.__name__] for base in cls.__mro__ if base.__name__ in OWN_PARTS), None)
    if found is not None:
        return found(layer)
    for base in cls.__mro__:
        if base in layers.PLAIN_LINEAR or not issubclass(base, layers.LinearBase):
            return None
        if any(name in vars(base) for name in _LOADERS):
            raise CheckpointError(
                f"{layer.prefix}: {base.__name__} loads its weights in its own way, which this plugin does not know",
                "list it in modules_to_not_convert, or serve the model with in-tree vLLM",
            )
    return None
