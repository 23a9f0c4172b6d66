"""Figures of an evaluation. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Divergence:
    """KL(reference | model) per token in nats, and how often both find the same token likeliest."""

    mean: float
    median: float
    p95: float
    p999: float
    maximum: float
    top1_agreement: float


@dataclass(frozen=True)
class TextResult:
    """One text.

    Attributes:
        tokens: predicted tokens, window length less one for each window.
        perplexity: of the model.
        reference_perplexity: of the reference, None without one.
        kl: None without a reference.
    """

    text: str
    windows: int
    window_len: int
    tokens: int
    perplexity: float
    reference_perplexity: float | None = None
    kl: Divergence | None = None


@dataclass
class EvalReport:
    """The result of ``evaluate_model``.

    Attributes:
        kl_method: ``full`` vocabulary, or ``top-k`` with the rest taken as one token (a lower bound).
    """

    model: str
    reference: str | None
    dtype: str
    kl_method: str | None
    seconds: float
    texts: list[TextResult] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def quantile(ordered: Sequence[float], share: float) -> float:
    """Linear interpolation between the closest ranks of sorted values."""
    position = (len(ordered) - 1) * share
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def summarize_kl(values: Sequence[float], same: Sequence[bool]) -> Divergence:
    """Statistics over tokens."""
    ordered = sorted(values)
    return Divergence(
        mean=math.fsum(ordered) / len(ordered),
        median=quantile(ordered, 0.5),
        p95=quantile(ordered, 0.95),
        p999=quantile(ordered, 0.999),
        maximum=ordered[-1],
        top1_agreement=sum(same) / len(same),
    )


def perplexity(scores: Sequence[float]) -> float:
    """exp of the mean negative log-probability."""
    return math.exp(-math.fsum(scores) / len(scores))
