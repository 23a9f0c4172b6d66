"""GPTQ (Frantar et al., 2022, arXiv:2210.17323) from second moments H = sum x x^T.

Columns are rounded one after the other; the error of each is spread over the columns that follow, as the upper
Cholesky factor U of the damped inverse moment says (U^T U = H^-1):

    e = (w[j] - round(w[j])) / U[j, j]        w[j:] -= e U[j, j:]

On a CPU the loop below runs in the memory of one K x K matrix. Its results are GPTQModel's bit for bit. GPTQModel
itself runs on a GPU, where it has a kernel for the loop, and where a moment has no Cholesky factor or no token.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vllm_quant_kernels.scheme import Int
from vllm_quant_plugin.console import suppress_output
from vllm_quant_plugin.errors import BackendError, UsageError
from vllm_quant_plugin.formats.gptq import GPTQ_V1
from vllm_quant_plugin.quantize.algorithm import (
    Algorithm,
    Cost,
    LayerTask,
    Library,
    SolvedLayer,
    matmul_flop,
    moment_flop,
    register_algorithm,
)
from vllm_quant_plugin.quantize.modules import MOMENT_BYTES, SPILL_BYTES, Linear, moment_sizes
from vllm_quant_plugin.quantize.options import SchemeRequest
from vllm_quant_plugin.quantize.step import SILENT, Step
from vllm_quant_plugin.schemes import StoredScheme

if TYPE_CHECKING:
    import torch

    from vllm_quant_kernels.canonical import CanonicalWeight
    from vllm_quant_plugin.quantize.engine.statistics import Moments

# Seconds per weight of the scale search, and per column.
SEARCH_SECONDS, COLUMN_SECONDS = 6.0e-7, 3.0e-4
# Columns whose error is spread among themselves at once, and over the rest after them.
BLOCK = 128
# The scale search shrinks a range in steps of a hundredth, down to a fifth.
SEARCH_STEPS, SEARCH_GRID = 80, 100


@dataclass(frozen=True)
class GptqOptions:
    """Options of GPTQ.

    Attributes:
        damp: share of the mean diagonal added to the Hessian.
        mse: exponent of the scale search's error, 0 for no search.
        static_groups: fix all groups' scales before the first column is rounded.
    """

    damp: Annotated[float, typer.Option(help="dampening, a share of the Hessian's mean diagonal")] = 0.05
    mse: Annotated[float, typer.Option(help="exponent of the scale search's error; 0 for none")] = 2.4
    static_groups: Annotated[bool, typer.Option(help="fix all scales before rounding")] = False

    def __post_init__(self) -> None:
        if not 0 < self.damp < 1:
            raise UsageError(f"damp {self.damp} is out of range", "it lies between 0 and 1")


class Gptq(Algorithm):
    """GPTQ, true sequential: each group of modules sees what the groups before it, already rounded, produce."""

    name = "gptq"
    bits = (2, 3, 4, 8)
    mixed_bits = (2, 3, 4, 8)
    options = GptqOptions
    act_order = True
    preset_pattern = r"actorder$"
    libraries = (Library("gptqmodel", lambda scheme, options: _library_job(scheme, options)),)

    def scheme(self, request: SchemeRequest) -> StoredScheme:
        bits, group_size = self.integer_weights(request)
        self.refuse_activations(request)
        made = StoredScheme(
            Int(bits), group_size, symmetric=request.symmetric is not False,
            act_order=request.act_order is not False, storage=GPTQ_V1,
        )  # fmt: skip
        return self.with_activations(made, request.activations)

    def cost(self, layer: Sequence[Linear], tokens: int, options: GptqOptions) -> Cost:
        """About 3 K^3 for the inverse and 2 N K^2 for the update of each weight."""
        weights = sum(m.in_features * m.out_features for m in layer)
        updates = sum(2.0 * m.out_features * m.in_features**2 + 3.0 * m.in_features**3 for m in layer)
        columns = sum(m.in_features for m in layer)
        moments = moment_sizes(layer)
        copied = max((b for b in moments if b < SPILL_BYTES), default=0)
        return Cost(
            flop=4 * matmul_flop(layer, tokens) + moment_flop(layer, tokens) + updates,
            seconds=COLUMN_SECONDS * columns + SEARCH_SECONDS * weights * (1 if options.mse else 0),
            memory_bytes=max(min(sum(moments), MOMENT_BYTES) + copied, max(moments)),
            spilled_bytes=max((b for b in moments if b >= SPILL_BYTES), default=0),
        )

    def provenance(self, options: GptqOptions) -> dict[str, Any]:
        return {"static_groups": options.static_groups, "damp_percent": options.damp, "true_sequential": True}

    def solve(self, task: LayerTask) -> SolvedLayer:
        import torch

        from vllm_quant_plugin.quantize.engine.in_place import spilled
        from vllm_quant_plugin.quantize.engine.statistics import (
            collect_moments,
            find_groups,
            relative_error,
            split_passes,
            weight_of,
            weights_in,
        )

        solved = SolvedLayer()
        groups = find_groups(task.layer, task.schemes, task.batches[0], task.kwargs)
        passes = split_passes(task.layer, groups)
        steps = task.step.split([weights_in(task.layer, together) for together in passes])
        for together, step in zip(passes, steps, strict=True):
            sizes = [weights_in(task.layer, [group]) for group in together]
            measuring, *solving = step.split([sum(sizes), *sizes])
            alone = len(together) == 1
            moments = collect_moments(task.layer, together, task.batches, task.kwargs, stop_early=alone, step=measuring)
            for group, found, own in zip(together, moments, solving, strict=True):
                # Without a signal every column would count as dead and become zero: all count alike instead.
                real = found.hessian
                hessian = real if found.signal else torch.eye(*real.shape, device=real.device)
                with spilled(hessian, task.scratch) as restore:
                    for name, part in zip(group.names, own.split([1.0] * len(group.names)), strict=True):
                        original = weight_of(task.layer, name)
                        scheme = task.schemes[name]
                        weight = solve(
                            original, hessian, found.tokens, scheme, task.options, restore=restore, step=part
                        )
                        rounded = weight.dequantize()
                        solved.errors[name] = relative_error(original, rounded, found.hessian)
                        solved.tokens[name], solved.weights[name] = found.signal, weight
                        original.copy_(rounded)
        return solved

    def solve_module(
        self, weight: torch.Tensor, scheme: StoredScheme, options: GptqOptions, moments: Moments
    ) -> torch.Tensor:
        return solve(weight, moments.hessian, moments.tokens, scheme, options).dequantize()


def _library_job(scheme: StoredScheme, options: GptqOptions) -> dict[str, Any]:
    return {
        "method": "gptq", "bits": scheme.bits, "group_size": scheme.group_size, "symmetric": scheme.symmetric,
        "act_order": scheme.act_order, "damp": options.damp, "mse": options.mse, "static_groups": options.static_groups,
    }  # fmt: skip


@dataclass(frozen=True)
class Rounded:
    """A rounded weight in floats.

    Attributes:
        values: (N, K), in the original order of columns.
        scales, zeros: float32 (N, G).
        g_idx: int64 (K,), the group of each column.
    """

    values: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor
    g_idx: torch.Tensor


class IndefiniteError(Exception):
    """The damped moment has no Cholesky factor."""


def solve(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    tokens: int,
    scheme: StoredScheme,
    options: GptqOptions,
    *,
    restore: Callable[[], None] | None = None,
    step: Step = SILENT,
) -> CanonicalWeight:
    """Round a linear module's weight so that its output changes least.

    Args:
        weight: float32 (N, K); left as it is.
        hessian: float32 (K, K), the sum of x x^T over ``tokens`` tokens.
        restore: brings back the values of ``hessian``; with it the solver works in the memory of ``hessian``.

    Returns:
        Canonical weight with float16 scales (N, G); ``g_idx`` set for act-order.
    """
    if hessian.device.type != "cpu" or not tokens:
        return to_canonical(solve_with_library(weight, hessian, tokens, scheme, options), scheme)
    from vllm_quant_plugin.quantize.engine.in_place import scaled_copy, scaled_in_place

    scaled = scaled_copy if restore is None else scaled_in_place
    try:
        found = round_columns(weight, scaled(hessian, 2.0 / tokens), scheme, options, step)
    except IndefiniteError:
        found = None
    finally:
        if restore is not None:
            restore()
    if found is None:
        # The library raises the damping step by step, for which it needs the matrix again.
        found = solve_with_library(weight, hessian, tokens, scheme, options)
    return to_canonical(found, scheme)


def round_columns(
    weight: torch.Tensor, hessian: torch.Tensor, scheme: StoredScheme, options: GptqOptions, step: Step = SILENT
) -> Rounded:
    """The algorithm itself.

    Args:
        weight: float32 (N, K); left as it is.
        hessian: float32 (K, K), column-major, overwritten.

    Raises:
        IndefiniteError: with the damping of ``options`` the matrix is not positive definite.
    """
    import torch

    from vllm_quant_plugin.quantize.engine.in_place import inverse_factor, permute

    w, (n, k), group = weight.clone(), weight.shape, scheme.group_of(weight.shape[1])
    grid = functools.partial(find_grid, bits=scheme.bits, symmetric=scheme.symmetric, mse=options.mse)
    whole = grid(w) if scheme.group_size < 0 else None
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    diagonal[dead] = 1
    w[:, dead] = 0
    fixed = None
    if options.static_groups and whole is None:
        fixed = [grid(w[:, start : start + group]) for start in range(0, k, group)]
    order = torch.arange(k)
    if scheme.act_order:
        order = torch.argsort(torch.diag(hessian), descending=True)
        w = w[:, order]
        permute(hessian, order)
    diagonal.add_(options.damp * diagonal.clone().mean())
    inverting, columns = step.split((1, 3))
    if not inverse_factor(hessian, inverting):
        raise IndefiniteError
    factor, rounded, grids = hessian, torch.zeros_like(w), list(fixed or ())
    scale, zero = whole or (torch.empty(0), torch.empty(0))
    for start in range(0, k, BLOCK):
        end = min(start + BLOCK, k)
        block, errors, local = w[:, start:end].clone(), torch.zeros(n, end - start), factor[start:end, start:end]
        for j in range(end - start):
            column = start + j
            if fixed is not None:
                scale, zero = fixed[int(order[column]) // group]
            elif whole is None and column % group == 0:
                scale, zero = grid(w[:, column : column + group])
                grids.append((scale, zero))
            value = block[:, j]
            nearest = round_to_grid(value.unsqueeze(1), scale, zero, scheme.bits).flatten()
            rounded[:, column] = nearest
            errors[:, j] = (value - nearest).div_(local[j, j])
            block[:, j:] -= errors[:, j].unsqueeze(1) * local[j, j:]
        w[:, end:] -= errors.matmul(factor[start:end, end:])
        columns.at(end / k)
    inverse = torch.argsort(order)
    groups = (order if fixed is not None else torch.arange(k)) // group
    grids = grids or [(scale, zero)]
    values = rounded[:, inverse] if scheme.act_order else rounded
    return Rounded(values, torch.cat([s for s, _ in grids], 1), torch.cat([z for _, z in grids], 1), groups[inverse])


def round_to_grid(values: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int) -> torch.Tensor:
    """Round to the nearest of ``scale * (code - zero)`` with codes of ``bits`` bits; (N, 1) scales and zero points."""
    codes = ((values / scale).round() + zero).clamp(0, (1 << bits) - 1)
    return scale * (codes - zero)


def find_grid(values: torch.Tensor, *, bits: int, symmetric: bool, mse: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zero points (N, 1) of a group (N, group), with the least sum of |error|^mse where ``mse`` is not 0."""
    import torch

    top = (1 << bits) - 1
    low, high = values.amin(1).clamp(max=0), values.amax(1).clamp(min=0)
    if symmetric:
        high = torch.maximum(low.abs(), high)
        low = torch.where(low < 0, -high, low)
    empty = (low == 0) & (high == 0)
    low, high = low.masked_fill(empty, -1.0), high.masked_fill(empty, 1.0)
    scale = (high - low) / top
    zero = torch.full_like(scale, (top + 1) / 2) if symmetric else (-low / scale).round()
    if mse > 0:
        scale, zero = _search_grid(values, low, high, scale, zero, bits=bits, symmetric=symmetric, mse=mse)
    return scale.unsqueeze(1), zero.unsqueeze(1)


def _search_grid(
    values: torch.Tensor, low: torch.Tensor, high: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor,
    *, bits: int, symmetric: bool, mse: float,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Try ever smaller ranges; with two bits also the other integer beside the ideal zero point."""
    import torch

    top = (1 << bits) - 1
    best, scale, zero = torch.full_like(scale, float("inf")), scale.clone(), zero.clone()
    for step in range(SEARCH_STEPS):
        share = 1 - step / SEARCH_GRID
        low_now, high_now = share * low, share * high
        scale_now = (high_now - low_now) / top
        candidates = [zero if symmetric else (-low_now / scale_now).round()]
        if bits == 2 and not symmetric:
            ideal = -low_now / scale_now
            below, above = ideal.floor().clamp_(0, top), ideal.ceil().clamp_(0, top)
            candidates.append(torch.where(candidates[0] == below, above, below))
        for zero_now in candidates:
            error = round_to_grid(values, scale_now.unsqueeze(1), zero_now.unsqueeze(1), bits)
            error = error.sub_(values).abs_().pow_(mse).sum(1)
            better = error < best
            best = torch.where(better, error, best)
            scale = torch.where(better, scale_now, scale)
            zero = torch.where(better, zero_now, zero)
    return scale, zero


@functools.cache
def _library() -> tuple[Any, Any]:
    """GPTQModel's solver and configuration classes; its banner and log stay hidden.

    Raises:
        BackendError: not installed.
    """
    if (os.cpu_count() or 1) <= 2:
        # Its worker pool reserves cores that a small machine does not have.
        os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    try:
        with suppress_output():
            from gptqmodel.quantization import QuantizeConfig
            from gptqmodel.quantization.gptq import GPTQ
    except ImportError as err:
        raise BackendError(
            f"GPTQ needs gptqmodel here ({err.name} is missing)", "pip install 'vllm-quant-plugin[quantize]'"
        ) from None
    return GPTQ, QuantizeConfig


def solve_with_library(
    weight: torch.Tensor, hessian: torch.Tensor, tokens: int, scheme: StoredScheme, options: GptqOptions
) -> Rounded:
    """The same by GPTQModel, which needs memory for several copies of ``hessian``; arguments as for ``solve``."""
    import torch
    from torch import nn

    solver_class, config_class = _library()
    config = config_class(
        bits=scheme.bits, group_size=scheme.group_size, sym=scheme.symmetric, desc_act=scheme.act_order,
        act_group_aware=False, static_groups=options.static_groups, mse=options.mse, damp_percent=options.damp,
        offload_to_disk=False,
    )  # fmt: skip
    n, k = weight.shape
    work = nn.Linear(k, n, bias=False, device="meta")
    work.weight = nn.Parameter(weight, requires_grad=False)
    with suppress_output(), torch.no_grad():
        solver = solver_class(work, config)
        # It accumulates 2 / tokens x x^T; the factor cancels in everything but its loss figure.
        solver.H = hessian * (2.0 / max(tokens, 1))
        solver.quantizer.configure(perchannel=True)
        solver.nsamples = solver._hessian_total_samples = tokens
        values, scales, zeros, g_idx, *_ = solver.quantize()
        solver.free()
    return Rounded(values, scales, zeros, g_idx.long().to(scales.device))


def to_canonical(found: Rounded, scheme: StoredScheme) -> CanonicalWeight:
    """Codes of a rounded weight; they are exact integers up to float32 rounding."""
    import torch

    from vllm_quant_kernels.canonical import CanonicalWeight

    codes = (found.values.float() / found.scales[:, found.g_idx]).add_(found.zeros[:, found.g_idx]).round_()
    codes = codes.clamp_(0, (1 << scheme.bits) - 1).to(torch.uint8)
    return CanonicalWeight(
        codes=codes,
        scales=found.scales.half(),
        bits=scheme.bits,
        group_size=scheme.group_of(found.values.shape[1]),
        zeros=None if scheme.symmetric else found.zeros.round().to(torch.uint8),
        g_idx=found.g_idx.to(torch.int32) if scheme.act_order else None,
    )


register_algorithm(Gptq())
