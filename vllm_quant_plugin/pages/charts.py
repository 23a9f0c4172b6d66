"""Charts as inline SVG whose x is in percent: at every width the plot is laid out anew and the text keeps its size."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vllm_quant_plugin.pages.markup import Html, html, join, tag

HEIGHT, TOP, BOTTOM = 216, 10, 26
BASE = HEIGHT - BOTTOM


def step_of(span: float, most: int) -> float:
    """The least of 1, 2, 5 times a power of ten of which ``most`` cover ``span``."""
    least = span / most
    power = 10.0 ** math.floor(math.log10(least))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= least * (1 - 1e-9))


def ticks(high: float, most: int = 5) -> list[str]:
    """Labels from 0 in at most ``most`` equal, rounded steps; the last is not below ``high``."""
    high = high if high > 0 else 1.0
    step = step_of(high, most)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    # Less than a pixel of rounding is no step of its own.
    return [f"{i * step:,.{digits}f}" for i in range(math.ceil(high / step * (1 - 1e-8)) + 1)]


def _y(share: float) -> float:
    """Pixels from the top of a share of the plot's height."""
    return BASE - (BASE - TOP) * share


def _text(x: str, y: float, text: str, anchor: str, *, minor: bool = False) -> Html:
    return tag("text", text, x=x, y=f"{y:.1f}", text_anchor=anchor, class_="minor" if minor else None)


def _axis(labels: Sequence[str]) -> Html:
    parts = []
    for i, label in enumerate(labels):
        y = _y(i / (len(labels) - 1))
        line = "base" if i == 0 else "grid"
        parts.append(tag("line", None, x1="0", x2="100%", y1=f"{y:.1f}", y2=f"{y:.1f}", class_=line))
        parts.append(_text("-8", y + 4, label, "end"))
    return join(*parts)


def _figure(title: str, y_name: str, x_name: str, plot: Html, key: object = None) -> Html:
    drawing = tag("svg", plot, class_="chart", height=str(HEIGHT), role="img", aria_label=title)
    return tag("figure", join(
        tag("figcaption", title), tag("p", y_name, class_="axis"), drawing, tag("p", x_name, class_="axis below"), key,
    ))  # fmt: skip


def columns(title: str, bars: Sequence[tuple[str, float]], y_name: str, x_name: str) -> Html:
    """One bar for each (name, value not below 0), numbered from 0; a bar's tooltip has its name and value."""
    labels = ticks(max((value for _, value in bars), default=0.0))
    top = float(labels[-1].replace(",", ""))
    width = 100 / max(1, len(bars))
    parts: list[Html] = [_axis(labels)]
    for i, (name, value) in enumerate(bars):
        y = _y(value / top)
        shown = tag("title", f"{name}: {value:.4g}")
        parts.append(tag("rect", shown, class_="column", x=f"{(i + 0.14) * width:.3f}%", width=f"{0.72 * width:.3f}%",
                         y=f"{y:.2f}", height=f"{BASE - y:.2f}"))  # fmt: skip
    wide, narrow = (max(1, round(step_of(max(len(bars), 1), most))) for most in (16, 6))
    for i in range(0, len(bars), wide):
        parts.append(_text(f"{(i + 0.5) * width:.3f}%", BASE + 18, str(i), "middle", minor=i % narrow != 0))
    return _figure(title, y_name, x_name, join(*parts))


def distribution(title: str, series: Sequence[tuple[str, Sequence[int]]], low: int, per_decade: int, y_name: str,
                 x_name: str) -> Html:  # fmt: skip
    """Shares of two counts over the same logarithmic bins: the first filled, the second as a dashed outline.

    The axis goes from the first bin that holds anything to the last.

    Args:
        series: (name, counts per bin); the bins start at ``10**low`` and are ``1 / per_decade`` decades wide.
    """
    filled = [i for _, counts in series for i, count in enumerate(counts) if count]
    first, last = (min(filled), max(filled)) if filled else (0, 0)
    number = last - first + 1
    shares = [(name, [100 * count / max(1, sum(counts)) for count in counts[first : last + 1]])
              for name, counts in series]  # fmt: skip
    labels = ticks(max((value for _, values in shares for value in values), default=0.0))
    top = float(labels[-1].replace(",", ""))
    parts: list[Html] = [_axis(labels)]
    edges = [i for i in range(first, last + 2) if i % per_decade == 0]
    narrow = max(1, round(step_of(max(len(edges), 1), 6)))
    for n, i in enumerate(edges):
        # The first bin also holds all that is less.
        label = ("≤ " if i == 0 else "") + f"1e{low + i // per_decade}"
        x = 100 * (i - first) / number
        anchor = "start" if x < 4 else "end" if x > 96 else "middle"
        parts.append(tag("line", None, x1=f"{x:.3f}%", x2=f"{x:.3f}%", y1=f"{BASE}", y2=f"{BASE + 5}", class_="base"))
        parts.append(_text(f"{x:.3f}%", BASE + 18, label, anchor, minor=n % narrow != 0))
    paths = []
    for (_, values), look in zip(shares, ("area", "outline"), strict=False):
        points = "".join(f"L{i},{100 - 100 * v / top:.3f}L{i + 1},{100 - 100 * v / top:.3f}"
                         for i, v in enumerate(values))  # fmt: skip
        paths.append(tag("path", None, class_=look, d=f"M0,100{points}L{number},100Z"))
    inner = tag("svg", join(*paths), x="0", y=str(TOP), width="100%", height=str(BASE - TOP),
                viewBox=f"0 0 {number} 100", preserveAspectRatio="none")  # fmt: skip
    names = zip((name for name, _ in series), ("area", "outline"), strict=False)
    key = tag("div", join(*(tag("span", join(swatch(look), name)) for name, look in names)), class_="key")
    return _figure(title, y_name, x_name, join(*parts, inner), key)


def swatch(look: str) -> Html:
    """The colour of a part, beside its name."""
    return tag("svg", tag("rect", None, width="11", height="11", rx="2", class_=look), class_="swatch",
               viewBox="0 0 11 11", aria_hidden="true")  # fmt: skip


def stacked(title: str, parts: Sequence[tuple[str, int, str]]) -> Html:
    """Parts of a whole in one bar: (name, amount, class of its colour); the names are tooltips."""
    total = sum(amount for _, amount, _ in parts) or 1
    drawn, x = [], 0.0
    for name, amount, look in parts:
        width = 100 * amount / total
        drawn.append(tag("rect", tag("title", name), class_=look, x=f"{x:.4f}%", width=f"{width:.4f}%", y="0",
                         height="100%"))  # fmt: skip
        x += width
    return tag("svg", html(join(*drawn)), class_="bar", role="img", aria_label=title)
