"""Activation-aware weight quantization (Lin et al., 2023, arXiv:2306.00978) from second moments.

The paper searches per-channel scales and clipping that minimise the output error of a linear
module on calibration data. For one module that error is a quadratic form of the input's second
moment H = sum x x^T:

    sum over tokens of |D x|^2 = tr(D H D^T),    D = dequantized(W s) / s - W

so every candidate costs (N, K) x (K, K) instead of a pass over the data, and is exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vllm_quant_kernels.scheme import Int
from vllm_quant_plugin.formats.compressed_tensors import PACK_QUANTIZED
from vllm_quant_plugin.quantize.algorithm import (
    ROUND_SECONDS,
    Algorithm,
    Cost,
    LayerTask,
    Library,
    SolvedLayer,
    matmul_flop,
    moment_flop,
    register_algorithm,
)
from vllm_quant_plugin.quantize.io.storage import stored_scale_dtype
from vllm_quant_plugin.quantize.modules import Linear, moment_sizes
from vllm_quant_plugin.quantize.options import SchemeRequest
from vllm_quant_plugin.quantize.step import SILENT, Step
from vllm_quant_plugin.schemes import Storage, StoredScheme

if TYPE_CHECKING:
    import torch

    from vllm_quant_kernels.canonical import CanonicalWeight
    from vllm_quant_plugin.quantize.engine.statistics import Group, Moments

SCALE_GRID = 20
CLIP_STEPS = 10
MAX_SHRINK = 0.5
# AutoAWQ leaves these unclipped: their product, not their output, enters the softmax.
_UNCLIPPED = ("q_proj", "k_proj")
# Elements of a float32 temporary; bounds memory on wide modules.
CHUNK_ELEMENTS = 1 << 24


@dataclass(frozen=True)
class Grid:
    """How weights are rounded: see ``StoredScheme``; ``scale_dtype`` is what scales are stored in."""

    bits: int
    group_size: int
    symmetric: bool
    scale_dtype: torch.dtype

    def affine(self, values: torch.Tensor, shrink: torch.Tensor | float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
        """Scales and zero points, float32 (N, G, 1), of (N, G, group) values whose range is shrunk first."""
        import torch

        from vllm_quant_plugin.rtn import half_range

        top = (1 << self.bits) - 1
        if self.symmetric:
            middle = 1 << (self.bits - 1)
            scales = values.abs().amax(-1, keepdim=True) * shrink / half_range(self.bits)
            scales = self._store(scales)
            return scales, torch.full_like(scales, middle)
        high = values.amax(-1, keepdim=True).clamp(min=0) * shrink
        low = values.amin(-1, keepdim=True).clamp(max=0) * shrink
        scales = self._store((high - low) / top)
        return scales, (-low / scales).round().clamp(0, top)

    def _store(self, scales: torch.Tensor) -> torch.Tensor:
        import torch

        scales = torch.where(scales == 0, torch.ones_like(scales), scales)
        return scales.clamp(min=torch.finfo(self.scale_dtype).tiny).to(self.scale_dtype).float()

    def codes(self, values: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
        """Integer codes as float32, the shape of ``values``."""
        return ((values / scales).round() + zeros).clamp(0, (1 << self.bits) - 1)

    def grouped(self, weight: torch.Tensor) -> torch.Tensor:
        """(N, G, group) view of (N, K)."""
        n, k = weight.shape
        return weight.reshape(n, -1, self.group_size if self.group_size > 0 else k)

    def round(self, weight: torch.Tensor) -> torch.Tensor:
        """The (N, K) weight after rounding to nearest."""
        values = self.grouped(weight)
        scales, zeros = self.affine(values)
        return ((self.codes(values, scales, zeros) - zeros) * scales).reshape(weight.shape)


def _row_chunks(weight: torch.Tensor) -> Sequence[torch.Tensor]:
    return weight.split(max(1, CHUNK_ELEMENTS // weight.shape[1]))


def output_error(
    weights: Sequence[torch.Tensor], scale: torch.Tensor, hessian: torch.Tensor, grid: Grid,
    step: Step = SILENT,
) -> float:  # fmt: skip
    """tr(D H D^T) summed over the weights (N_i, K) when rounded after multiplication with ``scale`` (K,)."""
    total, done, every = 0.0, 0, sum(weight.shape[0] for weight in weights)
    for weight in weights:
        for rows in _row_chunks(weight):
            delta = grid.round(rows * scale) / scale - rows
            total += float(((delta @ hessian) * delta).sum())
            done += rows.shape[0]
            step.at(done / every)
    return total


def _candidates(weights: Sequence[torch.Tensor], hessian: torch.Tensor, group_size: int) -> list[torch.Tensor]:
    """Scales x^r and x^r / w^(1-r), from the inputs' RMS x and the weights' mean magnitude w within their groups."""
    import torch

    x = hessian.diagonal().clamp(min=0).sqrt()
    x = x / x.mean().clamp(min=1e-12)
    magnitude = torch.zeros_like(x)
    for weight in weights:
        k = weight.shape[1]
        grouped = weight.abs().reshape(weight.shape[0], -1, group_size if group_size > 0 else k)
        magnitude += (grouped / grouped.amax(-1, keepdim=True).clamp(min=1e-12)).reshape(-1, k).sum(0)
    w = magnitude / sum(weight.shape[0] for weight in weights)
    found = []
    for step in range(SCALE_GRID):
        ratio = step / SCALE_GRID
        for scale in (x**ratio, x**ratio / (w ** (1 - ratio) + 1e-4)):
            scale = scale.clamp(min=1e-4)
            found.append(scale / (scale.max() * scale.min()).sqrt())
    return found


def search_scale(
    weights: Sequence[torch.Tensor],
    hessian: torch.Tensor,
    grid: Grid,
    *,
    shared_heads: int = 1,
    head_dim: int = 0,
    step: Step = SILENT,
) -> torch.Tensor:
    """The per-channel scale (K,) with the smallest output error; ones where none is better.

    Args:
        weights: float32 (N_i, K), modules that read the same input.
        hessian: float32 (K, K).
        shared_heads, head_dim: for an attention output: query heads per KV head, which must share a scale.
    """
    from vllm_quant_plugin.quantize.engine.fold import tie_heads

    best = hessian.new_ones(hessian.shape[0])
    first, *parts = step.split([1.0] * (1 + 2 * SCALE_GRID))
    least = output_error(weights, best, hessian, grid, first)
    for scale, part in zip(_candidates(weights, hessian, grid.group_size), parts, strict=True):
        if shared_heads > 1:
            scale = tie_heads(scale, shared_heads, head_dim)
        error = output_error(weights, scale, hessian, grid, part)
        if error < least:
            best, least = scale, error
    return best


def search_clip(weight: torch.Tensor, hessian: torch.Tensor, grid: Grid, step: Step = SILENT) -> torch.Tensor:
    """How much to shrink each group's range, float32 (N, G, 1) in [1 - MAX_SHRINK, 1].

    The error of a group is taken alone, with its own block of ``hessian``.
    """
    import torch

    k = weight.shape[1]
    group = grid.group_size if grid.group_size > 0 else k
    blocks = torch.stack([hessian[i : i + group, i : i + group] for i in range(0, k, group)])
    chosen, chunks = [], _row_chunks(weight)
    for rows, part in zip(chunks, step.split([1.0] * len(chunks)), strict=True):
        values = grid.grouped(rows)
        best = torch.ones(*values.shape[:2], 1, device=weight.device)
        least = torch.full_like(best, torch.inf)
        for tried in range(CLIP_STEPS):
            shrink = 1 - tried * MAX_SHRINK / CLIP_STEPS
            scales, zeros = grid.affine(values, shrink)
            delta = ((grid.codes(values, scales, zeros) - zeros) * scales - values).transpose(0, 1)
            error = (torch.bmm(delta, blocks) * delta).sum(-1).T.unsqueeze(-1)
            better = error < least
            best = torch.where(better, torch.full_like(best, shrink), best)
            least = torch.where(better, error, least)
            part.at((tried + 1) / CLIP_STEPS)
        chosen.append(best)
    return torch.cat(chosen)


def quantize(weight: torch.Tensor, grid: Grid, shrink: torch.Tensor | float = 1.0) -> CanonicalWeight:
    """Canonical form of a float32 (N, K) weight, with ranges shrunk by ``shrink`` (N, G, 1)."""
    import torch

    from vllm_quant_kernels.canonical import CanonicalWeight

    values = grid.grouped(weight)
    scales, zeros = grid.affine(values, shrink)
    codes = grid.codes(values, scales, zeros).to(torch.uint8).reshape(weight.shape)
    stored = None if grid.symmetric else zeros.squeeze(-1).to(torch.uint8)
    return CanonicalWeight(codes, scales.squeeze(-1).to(grid.scale_dtype), grid.bits, values.shape[-1], stored)


class Awq(Algorithm):
    """Activation-aware scales and clipping, then rounding to nearest."""

    name = "awq"
    bits = (2, 3, 4, 8)
    mixed_bits = (2, 3, 4, 8)
    libraries = (
        Library("autoawq", lambda scheme, options: _library_job(scheme), lambda scheme: _library_refusal(scheme)),
        Library("gptqmodel", lambda scheme, options: _library_job(scheme), lambda scheme: _library_refusal(scheme)),
    )

    def scheme(self, request: SchemeRequest) -> StoredScheme:
        bits, group_size = self.integer_weights(request)
        self.refuse_activations(request)
        symmetric = bool(request.symmetric)
        # AutoAWQ's layout always carries zero points, and its readers take 4 bits only.
        storage = Storage("awq") if bits == 4 and not symmetric else PACK_QUANTIZED
        made = StoredScheme(Int(bits), group_size, symmetric=symmetric, storage=storage)
        return self.with_activations(made, request.activations)

    def cost(self, layer: Sequence[Linear], tokens: int, options: Any) -> Cost:
        """Each candidate scale multiplies a weight with its moment once: 2 N K^2."""
        candidates = 1 + 2 * SCALE_GRID
        searches = candidates * sum(2.0 * m.out_features * m.in_features**2 for m in layer)
        weights = sum(m.out_features * m.in_features for m in layer)
        moments = moment_sizes(layer)
        return Cost(
            flop=2 * matmul_flop(layer, tokens) + moment_flop(layer, tokens) + searches,
            seconds=ROUND_SECONDS * weights * (candidates + CLIP_STEPS),
            # All inputs of a layer are measured in one pass; a solver works on a copy of one.
            memory_bytes=sum(moments) + max(moments),
        )

    def solve(self, task: LayerTask) -> SolvedLayer:
        from vllm_quant_plugin.quantize.engine.statistics import (
            collect_moments,
            find_groups,
            relative_error,
            weight_of,
        )

        grids = {
            name: Grid(s.bits, s.group_size, s.symmetric, stored_scale_dtype(s, task.dtype))
            for name, s in task.schemes.items()
        }
        groups = find_groups(task.layer, task.schemes, task.batches[0], task.kwargs)
        measuring, searching, rounding = task.step.split((1, 3, 1))
        moments = collect_moments(task.layer, groups, task.batches, task.kwargs, step=measuring)
        _fold_scales(replace(task, step=searching), grids, groups, moments)
        solved = SolvedLayer()
        for group, found, own in zip(groups, moments, rounding.split(_sizes(groups)), strict=True):
            for name, part in zip(group.names, own.split([1.0] * len(group.names)), strict=True):
                weight = weight_of(task.layer, name)
                shrink: torch.Tensor | float = 1.0
                if not name.endswith(_UNCLIPPED):
                    shrink = search_clip(weight, found.hessian, grids[name], part)
                solved.weights[name] = quantize(weight, grids[name], shrink)
                solved.errors[name] = relative_error(weight, solved.weights[name].dequantize(), found.hessian)
                solved.tokens[name] = found.signal
                part.at(1.0)
        return solved

    def solve_module(self, weight: torch.Tensor, scheme: StoredScheme, options: Any, moments: Moments) -> torch.Tensor:
        import torch

        grid = Grid(scheme.bits, scheme.group_size, scheme.symmetric, stored_scale_dtype(scheme, torch.bfloat16))
        scale = search_scale([weight], moments.hessian, grid)
        scaled = moments.hessian / scale[:, None] / scale[None, :]
        shrink = search_clip(weight * scale, scaled, grid)
        return quantize(weight * scale, grid, shrink).dequantize() / scale


def _library_job(scheme: StoredScheme) -> dict[str, Any]:
    return {
        "method": "awq", "bits": scheme.bits, "group_size": scheme.group_size, "symmetric": scheme.symmetric
    }  # fmt: skip


def _library_refusal(scheme: StoredScheme) -> str | None:
    return None if scheme.storage.format == "awq" else "writes 4-bit AWQ with zero points only"


def _sizes(groups: Sequence[Group]) -> list[float]:
    return [float(len(group.names)) for group in groups]


def _fold_scales(
    task: LayerTask, grids: Mapping[str, Grid], groups: Sequence[Group], moments: Sequence[Moments]
) -> None:
    """Search and fold a scale for each group; moments follow. Undone where the layer's function changes."""
    from vllm_quant_plugin.quantize.engine.fold import find_fold, try_fold
    from vllm_quant_plugin.quantize.engine.statistics import weight_of

    for group, found, step in zip(groups, moments, task.step.split(_sizes(groups)), strict=True):
        fold = find_fold(task.layer, group, task.head_dim)
        if fold is None:
            continue
        weights = [weight_of(task.layer, n) for n in group.names]
        scale = search_scale(
            weights, found.hessian, grids[group.names[0]], shared_heads=fold.shared_heads, head_dim=fold.head_dim,
            step=step,
        )  # fmt: skip
        applied = try_fold(task.layer, fold, scale, task.dtype, task.sample_output)
        if applied is not None:
            found.hessian.div_(applied[:, None]).div_(applied[None, :])


register_algorithm(Awq())
