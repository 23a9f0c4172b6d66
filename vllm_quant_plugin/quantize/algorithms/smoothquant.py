"""SmoothQuant (Xiao et al., 2022, arXiv:2211.10438): loud activation channels made quieter, their weights louder.

    s[j] = max|X[:, j]|^a / max|W[:, j]|^(1 - a)      X / s, W * s: the product stays

The paper takes one strength ``a`` for a model. Here it can also be searched for each input: the strength with the
smallest error of the rounded product on calibration tokens, none included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from vllm_quant_plugin.quantize.algorithms.awq import tie_heads
from vllm_quant_plugin.quantize.engine.fold import Fold
from vllm_quant_plugin.quantize.engine.statistics import InputRange
from vllm_quant_plugin.quantize.recipe import Smooth
from vllm_quant_plugin.scheme import ActivationScheme

STEPS = 10
INT8_MAX, E4M3_MAX = 127.0, 448.0
Rounder = Callable[[torch.Tensor], torch.Tensor]


def round_activations(x: torch.Tensor, activation: ActivationScheme | None, peak: float) -> torch.Tensor:
    """float32 (T, K) inputs as the kernels see them: rounded to INT8 or FP8 steps and back.

    Args:
        activation: None leaves them alone.
        peak: largest magnitude over the calibration text, for static scales.
    """
    if activation is None or activation.strategy == "group":
        return x
    top = INT8_MAX if activation.kind == "int" else E4M3_MAX
    if activation.dynamic:
        scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-12) / top
    else:
        scale = torch.tensor(max(peak, 1e-12) / top, device=x.device)
    values = (x / scale).clamp(-top, top)
    rounded = values.round() if activation.kind == "int" else values.to(torch.float8_e4m3fn).float()
    return rounded * scale


def smoothing_scale(weights: Sequence[torch.Tensor], peak: torch.Tensor, strength: float) -> torch.Tensor:
    """SmoothQuant's scale (K,), of geometric mean 1; channels without signal keep 1.

    Args:
        weights: float32 (N_i, K), modules that read the same input.
        peak: float32 (K,), largest magnitude of each input channel.
    """
    loudest = torch.stack([w.abs().amax(0) for w in weights]).amax(0)
    alive = (peak > 0) & (loudest > 0)
    safe_x, safe_w = (torch.where(alive, t, torch.ones_like(t)) for t in (peak, loudest))
    scale = safe_x**strength / safe_w ** (1 - strength)
    scale = scale / scale[alive].log().mean().exp() if bool(alive.any()) else scale
    return torch.where(alive, scale, torch.ones_like(scale))


def product_error(
    weights: Sequence[torch.Tensor], found: InputRange, scale: torch.Tensor, activation: ActivationScheme,
    round_weight: Rounder,
) -> float:  # fmt: skip
    """Squared error of the rounded product X W^T over the sample when ``scale`` moves from the input to the weights."""
    x = found.sample / scale
    rounded = round_activations(x, activation, float((found.peak / scale).max()))
    total = 0.0
    for weight in weights:
        moved = weight * scale
        total += float((rounded @ round_weight(moved).T - x @ moved.T).square().sum())
    return total


def choose_scale(
    weights: Sequence[torch.Tensor], found: InputRange, fold: Fold, strength: Smooth, activation: ActivationScheme,
    round_weight: Rounder,
) -> torch.Tensor | None:  # fmt: skip
    """The scale (K,) to fold, None where none is better.

    Args:
        strength: SmoothQuant's, or ``search``.
        round_weight: float32 (N, K) to what it is after rounding.
    """

    def at(a: float) -> torch.Tensor:
        scale = smoothing_scale(weights, found.peak, a)
        return tie_heads(scale, fold.shared_heads, fold.head_dim) if fold.shared_heads > 1 else scale

    if strength != "search":
        return at(strength)
    if not found.tokens:
        return None
    best, least = None, product_error(weights, found, torch.ones_like(found.peak), activation, round_weight)
    for step in range(STEPS + 1):
        scale = at(step / STEPS)
        error = product_error(weights, found, scale, activation, round_weight)
        if error < least:
            best, least = scale, error
    return best
