"""Figures of an evaluation. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from vllm_quant_plugin.errors import QualityError

# Histograms of KL per token: decades from 1e-9 to 10 nats, four bins each; the first holds all that is less.
HISTOGRAM_DECADES = (-9, 1)
BINS_PER_DECADE = 4


@dataclass(frozen=True)
class Divergence:
    """KL(reference | model) per token in nats, and how often both rank the same token first (top-1 agreement).

    Attributes:
        histogram: tokens per bin of log10 KL, see ``HISTOGRAM_DECADES``.
    """

    mean: float
    median: float
    p95: float
    p999: float
    maximum: float
    top1_agreement: float
    histogram: tuple[int, ...] = ()


@dataclass(frozen=True)
class TextResult:
    """One text.

    Attributes:
        tokens: predicted tokens, window length less one for each window.
        perplexity: of the model.
        reference_perplexity: of the reference, None without one.
        kl: None without a reference.
        noise: of the reference against itself in another dtype: no figure below it means anything.
    """

    text: str
    windows: int
    window_len: int
    tokens: int
    perplexity: float
    reference_perplexity: float | None = None
    kl: Divergence | None = None
    noise: Divergence | None = None


@dataclass(frozen=True)
class LayerError:
    """The output of a decoder layer compared with the reference.

    Attributes:
        error: |model - reference| / |reference| of the hidden states after the layer (Frobenius norms).
    """

    layer: str
    error: float


@dataclass
class EvalReport:
    """The result of ``evaluate_model``.

    Attributes:
        kl_method: ``full`` vocabulary, or ``top-k`` with the rest taken as one token (a lower bound).
        layers: error of the hidden states after each decoder layer, on the first window of each text.
        noise: what ``TextResult.noise`` was measured between, e.g. ``bfloat16 and float32``.
        notes: for the reader.
        model_bytes, reference_bytes: sizes of the weights, where they are known.
        vllm: the version that ran the models.
    """

    model: str
    reference: str | None
    dtype: str
    kl_method: str | None
    seconds: float
    texts: list[TextResult] = field(default_factory=list)
    layers: list[LayerError] = field(default_factory=list)
    noise: str | None = None
    notes: list[str] = field(default_factory=list)
    model_bytes: int | None = None
    reference_bytes: int | None = None
    vllm: str = ""

    @property
    def worst_kl(self) -> float | None:
        """The largest of the texts' mean KL, None without a reference."""
        return max((text.kl.mean for text in self.texts if text.kl is not None), default=None)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def require_quality(report: EvalReport, max_kl: float | None) -> None:
    """Raise unless every text's mean KL is at most ``max_kl`` nats per token.

    Raises:
        QualityError: it is more, or was not measured.
    """
    if max_kl is None:
        return
    worst = report.worst_kl
    if worst is None:
        raise QualityError(f"{report.model}: KL was not measured, --max-kl cannot be checked", "give --reference")
    if worst > max_kl:
        text = max((t for t in report.texts if t.kl), key=lambda t: t.kl.mean if t.kl else 0.0)
        raise QualityError(
            f"{report.model}: mean KL {worst:.5f} nats per token on {text.text} is above --max-kl {max_kl:g}",
            "use more bits, a smaller group, GPTQ or AWQ, or --target-bpw",
        )


def quantile(ordered: Sequence[float], share: float) -> float:
    """Linear interpolation between the closest ranks of sorted values."""
    position = (len(ordered) - 1) * share
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def histogram(values: Sequence[float]) -> tuple[int, ...]:
    """Values per bin of their decimal logarithm; what lies outside counts in the first or last bin."""
    low, high = HISTOGRAM_DECADES
    counts = [0] * ((high - low) * BINS_PER_DECADE)
    for value in values:
        position = (math.log10(value) - low) * BINS_PER_DECADE if value > 0 else 0
        counts[min(max(math.floor(position), 0), len(counts) - 1)] += 1
    return tuple(counts)


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
        histogram=histogram(ordered),
    )


def perplexity(scores: Sequence[float]) -> float:
    """exp of the mean negative log-probability."""
    return math.exp(-math.fsum(scores) / len(scores))
