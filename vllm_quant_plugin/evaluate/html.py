"""The quality report as one HTML page without external assets. No torch."""

from __future__ import annotations

from html import escape

from vllm_quant_plugin.evaluate.plots import bar_plot, histogram_plot
from vllm_quant_plugin.evaluate.report import Divergence, EvalReport, TextResult

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #59636e; --paper: #fff; --line: #d1d9e0; --a: #0969da;
  --b: #9a6700; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9198a1; --paper: #0d1117; --line: #3d444d;
  --a: #4493f8; --b: #d29922; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 760px;
  margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.4em; } h2 { font-size: 1.15em; margin-top: 2em; } p, figcaption { color: var(--soft); }
div.wide { overflow-x: auto; } table { border-collapse: collapse; } figure { margin: 1em 0; }
th, td { padding: .25em .6em; border-bottom: 1px solid var(--line); text-align: right; }
td { white-space: nowrap; } th { vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; } svg { width: 100%; height: auto; }
svg text { font: 11px system-ui, sans-serif; fill: var(--soft); } svg .grid { stroke: var(--line); }
svg .bar, svg .model { fill: var(--a); } svg .model { fill-opacity: .35; stroke: var(--a); }
svg .noise { fill: none; stroke: var(--b); stroke-dasharray: 4 3; stroke-width: 1.5; }
.key-a { color: var(--a); } .key-b { color: var(--b); }
"""


def _table(head: list[str], rows: list[list[str]]) -> str:
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>'


def _kl_cells(kl: Divergence) -> list[str]:
    values = [kl.mean, kl.median, kl.p95, kl.p999, kl.maximum]
    return [f"{value:.5f}" for value in values] + [f"{kl.top1_agreement:.2%}"]


def _text_rows(report: EvalReport) -> tuple[list[list[str]], list[list[str]]]:
    perplexities, divergences = [], []
    for t in report.texts:
        there = "" if t.reference_perplexity is None else f"{t.reference_perplexity:.3f}"
        perplexities.append([t.text, f"{t.windows} x {t.window_len}", f"{t.perplexity:.3f}", there])
        if t.kl is not None:
            divergences.append([t.text, *_kl_cells(t.kl)])
        if t.noise is not None:
            divergences.append([f"{t.text}, noise floor", *_kl_cells(t.noise)])
    return perplexities, divergences


def _histogram(t: TextResult) -> str:
    assert t.kl is not None
    series = [("model", t.kl.histogram), *([("noise", t.noise.histogram)] if t.noise else [])]
    caption = f'{escape(t.text)}: <span class="key-a">this model</span>'
    if t.noise:
        caption += ', <span class="key-b">noise floor (dashed)</span>'
    return f"<figure>{histogram_plot(f'KL per token on {t.text}', series)}<figcaption>{caption}</figcaption></figure>"


def html_report(report: EvalReport, name: str, recipe: str | None = None, lost: dict[str, float] | None = None) -> str:
    """The page.

    Args:
        name: of the model, in the heading.
        recipe: how it was made.
        lost: per module, the share of its output's energy that was lost on the calibration text.
    """
    perplexities, divergences = _text_rows(report)
    parts = [f"<h1>Quality of {escape(name)}</h1>"]
    if recipe:
        parts.append(f"<p>{escape(recipe)}</p>")
    parts.append(f"<p>Measured through vLLM in {escape(report.dtype)}, {report.seconds:.0f} s.</p>")
    parts.append("<h2>Perplexity</h2>")
    parts.append(_table(["text", "windows", "perplexity", "original"], perplexities))
    if divergences:
        head = ["text", "mean", "median", "p95", "p99.9", "maximum", "top-1 agreement"]
        parts.append("<h2>KL divergence from the original, nats per token</h2>" + _table(head, divergences))
        if report.noise:
            parts.append(
                f"<p>Noise floor: the original against itself, computed in {escape(report.noise)}."
                " Differences below it mean nothing.</p>"
            )
        if report.kl_method == "top-k":
            parts.append("<p>KL over the original's top 512 tokens, all others counted as one: a lower bound.</p>")
        parts += [_histogram(t) for t in report.texts if t.kl is not None]
    if report.layers:
        bars = [(row.layer.rpartition(".")[2], row.error) for row in report.layers]
        parts.append("<h2>Error of the hidden states after each layer</h2>")
        parts.append(f"<figure>{bar_plot('Relative error after each decoder layer', bars, 'relative error')}</figure>")
        parts.append(_table(["layer", "relative error"], [[r.layer, f"{r.error:.4%}"] for r in report.layers]))
    if lost:
        worst = sorted(lost.items(), key=lambda item: -item[1])
        parts.append("<h2>Share of each module's output energy lost on the calibration text</h2>")
        parts.append(_table(["module", "lost"], [[module, f"{error:.4%}"] for module, error in worst]))
    parts += [f"<p>{escape(note)}</p>" for note in report.notes]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Quality of {escape(name)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )
