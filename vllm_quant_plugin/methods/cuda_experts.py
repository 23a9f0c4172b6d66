"""Experts on an NVIDIA GPU by the grouped CUDA kernels: one stack of all experts a matrix, one call for all of them.

    topk_ids (M, top_k) -> moe_align_block_size: tiles of pairs (token, slot), each of one expert
    x (M, H)         --w13, grouped-->  (M * top_k, 2 I)    in the order of the pairs
                     --activation-->    (M * top_k, I)
                     --w2, grouped-->   (M * top_k, H)      times the router's weights, in FP32
                     --sum over top_k-> (M, H)

Every shape follows from M alone, so CUDA graphs can record it. Experts of other ranks (expert parallelism), and slots
for which the router chose none (id -1: padding rows, or a dispatcher's mark), have tiles too; the kernel writes zeros
for them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from vllm_quant_kernels import env
from vllm_quant_kernels.canonical import CanonicalWeight
from vllm_quant_kernels.cuda.kernels import CudaExperts
from vllm_quant_kernels.cuda.ops import experts_cuda, tile_tokens
from vllm_quant_kernels.cuda.stack import split_rows, stack_cuda
from vllm_quant_kernels.cuda.weight import PackedCuda
from vllm_quant_kernels.registry import NoKernelError
from vllm_quant_kernels.shared_library import LibraryError
from vllm_quant_plugin import compat_layers as layers
from vllm_quant_plugin.errors import BackendError
from vllm_quant_plugin.methods.kernel import choose_kernel
from vllm_quant_plugin.schemes import StoredScheme

_SUFFIXES = {"": "data", "_scales": "scales", "_zeros": "zeros", "_perm": "perm"}
_NONE = torch.empty(0)


def pack_for_stack(
    parts: list[CanonicalWeight], scheme: StoredScheme, device: torch.device, dtype: torch.dtype
) -> list[PackedCuda] | None:
    """One expert's matrix, in pieces along the output, for :class:`ExpertStack`.

    None where no grouped kernel runs it: the expert is then a layer of its own.

    Raises:
        BackendError: the kernels are switched on and their library cannot be used.
    """
    plain = scheme.weight
    packed = []
    for part in parts:
        try:
            kernel = choose_kernel(part, plain, device, dtype, "experts")
        except NoKernelError:
            return None
        assert isinstance(kernel, CudaExperts)
        try:
            packed.append(kernel.packed(part))
        except LibraryError as error:
            raise BackendError(str(error), hint="run `make` with nvcc on PATH, or unset VQP_CUDA_KERNELS") from error
    return packed


@dataclass(frozen=True)
class Routing:
    """Which expert computes which pairs: what ``moe_align_block_size`` returns for tiles of ``tokens``."""

    rows: torch.Tensor
    experts: torch.Tensor
    padded_rows: torch.Tensor
    tokens: int


class ExpertStack:
    """All experts of one matrix (w13 or w2). Its tensors are parameters of the layer after ``register``.

    One stack serves unless gate and up gather their inputs in different orders (act-order); then there are two,
    and their outputs are joined.
    """

    def __init__(self, experts: list[list[PackedCuda]]) -> None:
        """``experts``: of each expert, the pieces of its matrix along the output, one or two."""
        pieces = max(len(parts) for parts in experts)
        if pieces > 1:
            cut = next(parts[0].n for parts in experts if len(parts) == pieces)
            experts = [parts if len(parts) == pieces else split_rows(parts[0], cut) for parts in experts]
        self._parts = [stack_cuda([parts[i] for parts in experts]) for i in range(pieces)]
        self._prefix = ""
        self._batch_invariant = env.batch_invariant()

    def register(self, layer: torch.nn.Module, prefix: str) -> None:
        """Move the tensors to parameters of ``layer`` named ``prefix``, ``prefix_scales``, ..."""
        self._prefix = prefix
        for i, part in enumerate(self._parts):
            for suffix, name in _SUFFIXES.items():
                tensor = getattr(part, name)
                parameter = None if tensor is None else torch.nn.Parameter(tensor, requires_grad=False)
                layer.register_parameter(self._name(i, suffix), parameter)
            # The dtype of the zero points stays: it decides the tile.
            zeros = None if part.zeros is None else part.zeros.new_empty(0)
            self._parts[i] = replace(part, data=_NONE, scales=_NONE, zeros=zeros, perm=None)

    def _name(self, index: int, suffix: str) -> str:
        return f"{self._prefix}{suffix}" + (f"_{index}" if index else "")

    def tokens(self, pairs: int, experts: int, device: torch.device) -> int:
        """The tile that suits this matrix for ``pairs`` rows over ``experts`` experts."""
        fixed = [part for part in self._parts if _fixed(part)]
        parts = fixed or self._parts
        return min(tile_tokens(part, pairs, experts, device, self._batch_invariant) for part in parts)

    @property
    def fixed_tile(self) -> bool:
        """Whether only one tile serves (floating zero points)."""
        return any(_fixed(part) for part in self._parts)

    def __call__(
        self,
        layer: torch.nn.Module,
        x: torch.Tensor,
        routing: Routing,
        top_k: int,
        pairs: int,
        row_scales: torch.Tensor | None,
    ) -> torch.Tensor:
        """x (pairs / top_k, K) to (pairs, N) in x's dtype, each row by its expert, times ``row_scales`` (pairs,)."""
        outputs = []
        for i, part in enumerate(self._parts):
            tensors = {name: getattr(layer, self._name(i, suffix)) for suffix, name in _SUFFIXES.items()}
            outputs.append(
                experts_cuda(
                    x,
                    replace(part, **tensors),
                    routing.rows,
                    routing.experts,
                    routing.padded_rows,
                    routing.tokens,
                    top_k,
                    pairs,
                    row_scales=row_scales,
                    batch_invariant=self._batch_invariant,
                )
            )
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)


def _fixed(part: PackedCuda) -> bool:
    return part.zeros is not None and part.zeros.dtype == torch.float32


def route(topk_ids: torch.Tensor, tokens: int, experts: int, expert_map: torch.Tensor | None) -> Routing:
    """Tiles of ``tokens`` pairs. Every pair is in one, also those of no expert: their output must be written too.

    vLLM's operator counts ids from 0 only, so -1 becomes an expert of its own behind the last: one that no stack holds.
    """
    ids = topk_ids.remainder(experts + 1)
    if expert_map is not None:
        expert_map = torch.nn.functional.pad(expert_map, (0, 1), value=-1)
    rows, tiles, used = layers.moe_align_block_size(ids, tokens, experts + 1, expert_map, pad_sorted_ids=True)
    return Routing(rows, tiles, used, tokens)


def run_experts(
    layer: Any,
    w13: ExpertStack,
    w2: ExpertStack,
    x: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    *,
    gated: bool = True,
) -> torch.Tensor:
    """x (M, H); topk_weights and topk_ids (M, top_k), ids global, -1 for none. Returns (M, H).

    ``gated``: w13 holds gate and up, not gate alone.
    """
    m, top_k = topk_ids.shape
    pairs, experts = m * top_k, layer.global_num_experts
    if not pairs:
        return torch.zeros_like(x)
    fixed = [stack for stack in (w13, w2) if stack.fixed_tile]
    tokens = min(stack.tokens(pairs, experts, x.device) for stack in fixed or (w13, w2))
    routing = route(topk_ids, tokens, experts, layer.expert_map)
    weights = topk_weights.reshape(-1).float().contiguous()
    on_input = bool(layer.apply_router_weight_on_input)
    gate_up = w13(layer, x, routing, top_k, pairs, weights if on_input else None)
    hidden = gate_up.new_empty(pairs, gate_up.shape[-1] // (2 if gated else 1))
    layers.apply_moe_activation(layer.activation, hidden, gate_up)
    out = w2(layer, hidden, routing, 1, pairs, None if on_input else weights)
    return out.view(m, top_k, -1).sum(dim=1)
