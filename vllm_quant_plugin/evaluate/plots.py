"""Plots as inline SVG that follow the page's colours (CSS variables), so that they read in light and dark. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from vllm_quant_plugin.evaluate.report import BINS_PER_DECADE, HISTOGRAM_DECADES

WIDTH, HEIGHT = 680, 240
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 28, 40


def _frame(title: str, body: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(body)}</svg>"
    )


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _nice_top(value: float) -> float:
    """The least of 1, 2, 5 times a power of ten that is not below ``value``."""
    if value <= 0:
        return 1.0
    power = 1e-12
    while power * 10 <= value:
        power *= 10
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value * (1 - 1e-12))


def _vertical_axis(top: float, label: str) -> list[str]:
    parts = []
    for i in range(5):
        value = top * i / 4
        y = HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * i / 4
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(LEFT - 6, y + 4, f"{value:.3g}", "end"))
    parts.append(_text(4, TOP - 16, label, "start"))
    return parts


def histogram_plot(title: str, series: Sequence[tuple[str, Sequence[int]]]) -> str:
    """Shares of tokens over log10 KL, one outline per (css class, counts)."""
    low, high = HISTOGRAM_DECADES
    shares = [(name, [count / max(1, sum(counts)) for count in counts]) for name, counts in series]
    top = _nice_top(max((max(values) for _, values in shares if values), default=1.0))
    step = (WIDTH - LEFT - RIGHT) / ((high - low) * BINS_PER_DECADE)
    parts = _vertical_axis(top, "share of tokens")
    for decade in range(low, high + 1):
        parts.append(_text(LEFT + (decade - low) * BINS_PER_DECADE * step, HEIGHT - BOTTOM + 16, f"1e{decade}"))
    parts.append(_text((LEFT + WIDTH) / 2, HEIGHT - 6, "KL per token, nats"))
    base = HEIGHT - BOTTOM
    for name, values in shares:
        points = [f"M{LEFT},{base}"]
        for i, value in enumerate(values):
            y = base - (base - TOP) * value / top
            points.append(f"L{LEFT + i * step:.1f},{y:.1f}L{LEFT + (i + 1) * step:.1f},{y:.1f}")
        points.append(f"L{WIDTH - RIGHT},{base}Z")
        parts.append(f'<path class="{name}" d="{"".join(points)}"/>')
    return _frame(title, parts)


def bar_plot(title: str, bars: Sequence[tuple[str, float]], label: str) -> str:
    """One bar per (name, value); the names are tooltips, and the first, middle and last are written out."""
    top = _nice_top(max((value for _, value in bars), default=1.0))
    step = (WIDTH - LEFT - RIGHT) / max(1, len(bars))
    base = HEIGHT - BOTTOM
    parts = _vertical_axis(top, label)
    for i, (name, value) in enumerate(bars):
        height = (base - TOP) * value / top
        parts.append(
            f'<rect class="bar" x="{LEFT + i * step + step * 0.1:.1f}" y="{base - height:.1f}"'
            f' width="{step * 0.8:.1f}" height="{height:.1f}"><title>{escape(name)}: {value:.4g}</title></rect>'
        )
    for i in sorted({0, len(bars) // 2, len(bars) - 1} if bars else set()):
        parts.append(_text(LEFT + (i + 0.5) * step, base + 16, bars[i][0]))
    return _frame(title, parts)
