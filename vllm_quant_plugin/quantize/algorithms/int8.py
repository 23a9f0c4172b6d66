"""INT8 weights with 8-bit activations, and SmoothQuant (Xiao et al., 2022, arXiv:2211.10438) for outlier channels.

SmoothQuant divides outlier channels of the activations and multiplies their weights:

    s[j] = max|X[:, j]|^a / max|W[:, j]|^(1 - a)      (X / s) (W * s)^T = X W^T

The paper takes one strength ``a`` for a model. Here it can also be searched for each input: the strength with the
smallest error of the W8A8 GEMM on calibration tokens, no smoothing included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vllm_quant_kernels.scheme import PER_CHANNEL, ActivationScheme, Int
from vllm_quant_plugin.errors import UsageError
from vllm_quant_plugin.formats.compressed_tensors import INT_QUANTIZED
from vllm_quant_plugin.quantize.algorithm import ROUND_SECONDS, Cost, LayerTask, Library, register_algorithm
from vllm_quant_plugin.quantize.algorithms.fp8 import w8a8_refusal
from vllm_quant_plugin.quantize.algorithms.rtn import RoundToNearest, quantize_weight, round_activations
from vllm_quant_plugin.quantize.io.storage import stored_scale_dtype
from vllm_quant_plugin.quantize.modules import Linear
from vllm_quant_plugin.quantize.options import SchemeRequest
from vllm_quant_plugin.quantize.step import SILENT, Step
from vllm_quant_plugin.schemes import StoredScheme

if TYPE_CHECKING:
    import torch

    from vllm_quant_plugin.quantize.engine.fold import Fold
    from vllm_quant_plugin.quantize.engine.statistics import Group, InputRange

Smooth = float | Literal["search"]
STEPS = 10
# Tokens of the sample that a strength is judged on.
_SAMPLE_TOKENS = 256
# What llm-compressor's own guides take for INT8.
LLMCOMPRESSOR_STRENGTH = 0.8


@dataclass(frozen=True)
class Int8Options:
    """Options of INT8.

    Attributes:
        smooth: SmoothQuant's strength, ``search`` for the best one of each input, None for no smoothing.
    """

    smooth: Annotated[
        Smooth | None,
        typer.Option(
            parser=str, metavar="<str>",
            help="SmoothQuant: search, none, or a strength from 0 to 1; default: search with static activations",
        ),
    ] = None  # fmt: skip


class Int8(RoundToNearest):
    """INT8 by rounding to nearest, after SmoothQuant where it is requested."""

    name = "int8"
    bits = (8,)
    mixed_bits = ()
    options = Int8Options
    preset_pattern = r"^w\d+a8$"
    libraries = (
        Library(
            "llmcompressor", lambda scheme, options: {"smooth": options.smooth}, w8a8_refusal, own_environment=True
        ),
    )

    def scheme(self, request: SchemeRequest) -> StoredScheme:
        _, group_size = self.integer_weights(request, bits=8, group_size=PER_CHANNEL)
        activation = ActivationScheme(Int(8)) if request.quantize_activations is not False else None
        if activation and group_size != PER_CHANNEL:
            raise UsageError("INT8 W8A8 has one weight scale per channel", "leave --group-size, or use --level W8A16")
        made = StoredScheme(
            Int(8), group_size, symmetric=request.symmetric is not False, activation=activation, storage=INT_QUANTIZED
        )
        return self.with_activations(made, request.activations)

    def resolve(self, given: Mapping[str, Any], scheme: StoredScheme, library: Library | None) -> Int8Options:
        smooth = given.get("smooth")
        activation = scheme.activation
        if smooth is None:
            chosen = _default_smooth(activation, library)
            return Int8Options(chosen)
        if smooth == "none":
            return Int8Options(None)
        if activation is None:
            raise UsageError(f"{scheme.describe()} has nothing to smooth", "SmoothQuant is for -m int8 with W8A8")
        if smooth == "search":
            if library is not None:
                raise UsageError(
                    f"{library.name} takes one strength for all inputs", f"use --smooth {LLMCOMPRESSOR_STRENGTH}"
                )
            return Int8Options("search")
        return Int8Options(_read_strength(smooth))

    def calibrated(self, scheme: StoredScheme, options: Int8Options) -> bool:
        return super().calibrated(scheme, options) or options.smooth is not None

    def cost(self, layer: Sequence[Linear], tokens: int, options: Int8Options) -> Cost:
        base = super().cost(layer, tokens, options)
        if options.smooth is None:
            return base
        weights, candidates = sum(m.in_features * m.out_features for m in layer), STEPS + 2
        return Cost(
            flop=base.flop + candidates * 2 * _SAMPLE_TOKENS * weights, seconds=ROUND_SECONDS * weights * candidates
        )

    def describe(self, options: Int8Options) -> str:
        return "" if options.smooth is None else f"SmoothQuant {options.smooth}"

    def prepare(self, task: LayerTask, groups: Sequence[Group], ranges: Sequence[InputRange]) -> None:
        """Fold SmoothQuant's scales into the layer; the ranges follow."""
        strength: Smooth | None = task.options.smooth
        if strength is None:
            return
        from vllm_quant_plugin.quantize.engine.fold import find_fold, try_fold
        from vllm_quant_plugin.quantize.engine.statistics import weight_of

        for group, found, step in zip(groups, ranges, task.step.split([1.0] * len(groups)), strict=True):
            fold, scheme = find_fold(task.layer, group, task.head_dim), task.schemes[group.names[0]]
            if fold is None or scheme.activation is None:
                continue
            weights = [weight_of(task.layer, name) for name in group.names]
            rounded = _rounder(scheme, stored_scale_dtype(scheme, task.dtype))
            scale = choose_scale(weights, found, fold, strength, scheme.activation, rounded, step)
            applied = None if scale is None else try_fold(task.layer, fold, scale, task.dtype, task.sample_output)
            if applied is not None:
                found.divide(applied)


def _default_smooth(activation: ActivationScheme | None, library: Library | None) -> Smooth | None:
    """Static activations get the best strength per input, or the one that a library takes."""
    if activation is None or activation.dynamic:
        return None
    return "search" if library is None else LLMCOMPRESSOR_STRENGTH


def _read_strength(text: str | float) -> float:
    try:
        strength = float(text)
    except ValueError:
        strength = -1.0
    if not 0 <= strength <= 1:
        raise UsageError(f"--smooth {text!r} is not known", "it is search, none, or a strength between 0 and 1")
    return strength


Rounder = Callable[["torch.Tensor"], "torch.Tensor"]


def _rounder(scheme: StoredScheme, scale_dtype: torch.dtype) -> Rounder:
    """float32 (N, K) to what it is after rounding."""
    return lambda weight: quantize_weight(weight, scheme, scale_dtype).dequantize()


def smoothing_scale(weights: Sequence[torch.Tensor], peak: torch.Tensor, strength: float) -> torch.Tensor:
    """SmoothQuant's scale (K,), of geometric mean 1; channels without signal keep 1.

    Args:
        weights: float32 (N_i, K), modules that read the same input.
        peak: float32 (K,), largest magnitude of each input channel.
    """
    import torch

    weight_peak = torch.stack([w.abs().amax(0) for w in weights]).amax(0)
    alive = (peak > 0) & (weight_peak > 0)
    safe_x, safe_w = (torch.where(alive, t, torch.ones_like(t)) for t in (peak, weight_peak))
    scale = safe_x**strength / safe_w ** (1 - strength)
    scale = scale / scale[alive].log().mean().exp() if bool(alive.any()) else scale
    return torch.where(alive, scale, torch.ones_like(scale))


def gemm_error(
    weights: Sequence[torch.Tensor], found: InputRange, scale: torch.Tensor, activation: ActivationScheme,
    round_weight: Rounder,
) -> float:  # fmt: skip
    """Squared error of the W8A8 GEMM X W^T over the sample when ``scale`` moves from the input to the weights."""
    x = found.sample / scale
    rounded = round_activations(x, activation, float((found.peak / scale).max()))
    total = 0.0
    for weight in weights:
        moved = weight * scale
        total += float((rounded @ round_weight(moved).T - x @ moved.T).square().sum())
    return total


def choose_scale(
    weights: Sequence[torch.Tensor], found: InputRange, fold: Fold, strength: Smooth, activation: ActivationScheme,
    round_weight: Rounder, step: Step = SILENT,
) -> torch.Tensor | None:  # fmt: skip
    """The scale (K,) to fold, None where no scale is better.

    Args:
        strength: SmoothQuant's, or ``search``.
        round_weight: float32 (N, K) to what it is after rounding.
    """
    import torch

    from vllm_quant_plugin.quantize.engine.fold import tie_heads

    def at(a: float) -> torch.Tensor:
        scale = smoothing_scale(weights, found.peak, a)
        return tie_heads(scale, fold.shared_heads, fold.head_dim) if fold.shared_heads > 1 else scale

    if strength != "search":
        return at(strength)
    if not found.tokens:
        return None
    best, least = None, gemm_error(weights, found, torch.ones_like(found.peak), activation, round_weight)
    for tried in range(STEPS + 1):
        scale = at(tried / STEPS)
        step.at(tried / (STEPS + 1))
        error = gemm_error(weights, found, scale, activation, round_weight)
        if error < least:
            best, least = scale, error
    return best


register_algorithm(Int8())
