"""Bytes read and operations done per engine step, from this project's own byte counts.

vLLM's own counters assume 16 bits for every weight of an unknown method and half a byte for every compressed-tensors
weight. Model-bandwidth utilization (MBU) is the bytes that a step must read, weights and KV cache, over the device's
bandwidth. Model-FLOPs utilization (MFU) is two operations per weight and token over its peak (Chowdhery et al. 2022,
arXiv:2204.02311, appendix B, without its attention term). Both describe one device, hence the fullest rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm_quant_plugin.checkpoint import Checkpoint, TensorInfo
from vllm_quant_plugin.formats.registry import code_leaves, has_experts


@dataclass(frozen=True)
class ModelSize:
    """What one token costs.

    Attributes:
        matmul_weights: weights of linear layers and the output head; the embedding is looked up, not multiplied.
        unread_bytes: bytes of the input embedding, of which a step reads a few rows; 0 when it is also the head.
    """

    matmul_weights: int
    unread_bytes: int


def model_size(checkpoint: Checkpoint, bits: int | None) -> ModelSize | None:
    """Sizes from the headers; None for a mixture of experts, where a token uses only a part of the weights.

    Args:
        bits: bits per weight of packed layers, None when unknown.
    """
    config = checkpoint.text_config
    if has_experts(config):
        return None
    tied = bool(config.get("tie_word_embeddings", checkpoint.config.get("tie_word_embeddings", False)))
    weights, unread, packed = 0, 0, code_leaves()
    for name, info in checkpoint.tensors.items():
        leaf = name.rpartition(".")[2]
        if "embed_tokens" in name or name.endswith("wte.weight"):
            weights += _elements(info) if tied else 0
            unread += 0 if tied else info.nbytes
        elif leaf in packed:
            if bits is None:
                return None
            weights += info.nbytes * 8 // bits
        elif leaf == "weight" and len(info.shape) == 2:
            weights += _elements(info)
    return ModelSize(weights, unread) if weights else None


def _elements(info: TensorInfo) -> int:
    count = 1
    for size in info.shape:
        count *= size
    return count


@dataclass(frozen=True)
class Peaks:
    """Peak rates of one device: bytes and operations per second."""

    bandwidth: float
    flops: float

    @classmethod
    def read(cls, launch: Mapping[str, Any]) -> Peaks | None:
        """From the launch metadata; None where the device's rates are unknown."""
        peaks = launch.get("peaks")
        return cls(float(peaks["bandwidth"]), float(peaks["flops"])) if peaks else None


@dataclass(frozen=True)
class Account:
    """Turns steps and tokens into bytes and operations of one device.

    Attributes:
        weight_bytes: of the fullest rank, read in every step.
        kv_bytes: the whole KV cache of one rank; a step reads the part that running requests hold.
        weights: multiplied per token, over all ``ranks``.
        ranks: devices one replica is split over.
    """

    weight_bytes: float
    kv_bytes: float
    weights: float
    ranks: int

    def step_bytes(self, kv_usage: float) -> float:
        """Bytes one step reads, with ``kv_usage`` (0 to 1) of the cache in use."""
        return self.weight_bytes + self.kv_bytes * kv_usage

    def token_operations(self) -> float:
        """Operations of one device per token."""
        return 2.0 * self.weights / self.ranks


def make_account(
    size: ModelSize | None, plan: Mapping[str, Any] | None, ranks: int, kv_tokens: int | None
) -> Account | None:
    """The account of a served model, None when a figure it needs is unknown."""
    if size is None or plan is None or kv_tokens is None:
        return None
    weight_bytes = plan["weight_bytes_per_rank"] - size.unread_bytes / ranks
    return Account(weight_bytes, float(plan["kv_bytes_per_token"]) * kv_tokens, float(size.matmul_weights), ranks)
