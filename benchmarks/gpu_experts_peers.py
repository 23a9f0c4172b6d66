"""The implementations that benchmarks/gpu_experts.py compares: one mixture-of-experts layer with given routing.

``build`` returns a function of x (M, H) to (M, H): w13, SiLU and multiply, w2, the router's weights, the sum over the
slots of a token. A peer's library is imported when it is built; a missing one raises, and the report names it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch

from vllm_quant_kernels.canonical import CanonicalWeight
from vllm_quant_kernels.cuda.ops import experts_cuda, tile_tokens
from vllm_quant_kernels.cuda.pack import pack_cuda
from vllm_quant_kernels.cuda.stack import stack_cuda
from vllm_quant_kernels.cuda.weight import PackedCuda

Runner = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Mixture:
    """Experts of one layer: w13 (2I, H) and w2 (H, I) of each; the experts of each token and their weights.

    ``ids`` int32 and ``weights`` float32 (M, top_k).
    """

    w13: list[CanonicalWeight]
    w2: list[CanonicalWeight]
    ids: torch.Tensor
    weights: torch.Tensor

    def pairs_of(self, expert: int) -> torch.Tensor:
        """The (token, slot) pairs that take ``expert``, by their index in ``ids.flatten()``."""
        return (self.ids.flatten() == expert).nonzero().flatten()


def activate(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


def tiles_of(ids: torch.Tensor, experts: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tiles of ``tokens`` pairs, each of one expert: rows, experts and padded_rows of ``vqp::wna16_experts_cuda``."""
    flat = ids.flatten().cpu()
    rows: list[int] = []
    tiles: list[int] = []
    for expert in range(experts):
        mine = (flat == expert).nonzero().flatten().tolist()
        mine += [flat.numel()] * (-len(mine) % tokens)
        rows += mine
        tiles += [expert] * (len(mine) // tokens)
    columns = (torch.tensor(values, dtype=torch.int32).to(ids.device) for values in (rows, tiles, [len(rows)]))
    return tuple(columns)  # type: ignore[return-value]


class Peer(ABC):
    """One implementation. ``tolerance``: relative error (Frobenius) against fp64 on the same weights. ``copies``
    builds several of distinct memory: the same experts in another order, routed to accordingly."""

    name: str
    tolerance = 2e-2

    @abstractmethod
    def copies(self, mixture: Mixture, count: int, dtype: torch.dtype) -> list[Runner]:
        """``count`` functions that compute the same."""


def rolled(stack: PackedCuda, by: int) -> PackedCuda:
    """A copy with expert e at place e + by."""
    tensors = {name: getattr(stack, name) for name in ("data", "scales", "zeros", "perm")}
    moved = {name: None if t is None else torch.roll(t, by, 0) for name, t in tensors.items()}
    return PackedCuda(**moved, kind=stack.kind, group_size=stack.group_size, n=stack.n, k=stack.k)


class Ours(Peer):
    """Two grouped calls. The routing is computed beforehand, as for the loop."""

    name = "vqp"

    def copies(self, mixture: Mixture, count: int, dtype: torch.dtype) -> list[Runner]:
        experts = len(mixture.w13)
        stacks = [stack_cuda([pack_cuda(w) for w in weights]) for weights in (mixture.w13, mixture.w2)]
        return [
            self._one([rolled(s, i) for s in stacks] if i else stacks, (mixture.ids + i) % experts, mixture.weights)
            for i in range(count)
        ]

    @staticmethod
    def _one(stacks: list[PackedCuda], ids: torch.Tensor, weights: torch.Tensor) -> Runner:
        (m, top_k), experts = ids.shape, stacks[0].data.shape[0]
        pairs = m * top_k
        tokens = min(tile_tokens(stack, pairs, experts, ids.device) for stack in stacks)
        routing, factors = tiles_of(ids, experts, tokens), weights.flatten().contiguous()

        def run(x: torch.Tensor) -> torch.Tensor:
            gate_up = experts_cuda(x, stacks[0], *routing, tokens, top_k, pairs)
            out = experts_cuda(activate(gate_up), stacks[1], *routing, tokens, 1, pairs, row_scales=factors)
            return out.view(m, top_k, -1).sum(1)

        return run


class Loop(Peer):
    """torch, expert by expert over the tokens that choose it, with 16-bit weights."""

    name = "torch-loop"

    def copies(self, mixture: Mixture, count: int, dtype: torch.dtype) -> list[Runner]:
        dense = [[w.dequantize(dtype) for w in weights] for weights in (mixture.w13, mixture.w2)]
        again = [dense] + [[[w.clone() for w in weights] for weights in dense] for _ in range(count - 1)]
        top_k = mixture.ids.shape[1]
        places = [(expert, mixture.pairs_of(expert)) for expert in mixture.ids.unique().tolist()]
        factors = mixture.weights.flatten()
        chosen = [(expert, pairs // top_k, factors[pairs, None]) for expert, pairs in places]

        def one(w13: list[torch.Tensor], w2: list[torch.Tensor]) -> Runner:
            def run(x: torch.Tensor) -> torch.Tensor:
                out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
                for expert, tokens, factor in chosen:
                    y = activate(x[tokens] @ w13[expert].T) @ w2[expert].T
                    out.index_add_(0, tokens, y.float() * factor)
                return out.to(x.dtype)

            return run

        return [one(*matrices) for matrices in again]


def gptq_words(codes: torch.Tensor) -> torch.Tensor:
    """4-bit codes (N, K) to GPTQ's int32 (K / 8, N): adjacent k from the low bits up."""
    fields = codes.T.reshape(-1, 8, codes.shape[0]).int()
    shifts = torch.arange(8, device=codes.device, dtype=torch.int32)[None, :, None] * 4
    return (fields << shifts).sum(1, dtype=torch.int32).contiguous()


class Marlin(Peer):
    """vLLM's fused experts by Marlin, through vLLM's own helpers. It computes the routing in the call."""

    name = "marlin-moe"

    def copies(self, mixture: Mixture, count: int, dtype: torch.dtype) -> list[Runner]:
        from vllm import _custom_ops as ops
        from vllm.model_executor.layers.fused_moe.experts.marlin_moe import fused_marlin_moe
        from vllm.model_executor.layers.quantization.utils import marlin_utils
        from vllm.scalar_type import scalar_types

        experts, prepared = len(mixture.w13), []
        for weights in (mixture.w13, mixture.w2):
            n, k = weights[0].codes.shape
            words = torch.stack([gptq_words(w.codes) for w in weights])
            scales = torch.stack([w.scales.to(dtype).T.contiguous() for w in weights])
            prepared.append(ops.gptq_marlin_moe_repack(words, k, n, 4))
            prepared.append(marlin_utils.marlin_moe_permute_scales(scales, k, n, weights[0].group_size))
        kind = scalar_types.uint4b8.id

        def one(w13: torch.Tensor, s13: torch.Tensor, w2: torch.Tensor, s2: torch.Tensor, ids: torch.Tensor) -> Runner:
            return lambda x: fused_marlin_moe(x, w13, w2, None, None, s13, s2, mixture.weights, ids, quant_type_id=kind)

        return [one(*(torch.roll(t, i, 0) for t in prepared), (mixture.ids + i) % experts) for i in range(count)]


PEERS: list[Peer] = [Ours(), Loop(), Marlin()]
