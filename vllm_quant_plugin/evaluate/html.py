"""The quality report as a page that stands alone. No torch."""

from __future__ import annotations

from vllm_quant_plugin.evaluate.report import BINS_PER_DECADE, HISTOGRAM_DECADES, Divergence, EvalReport, TextResult
from vllm_quant_plugin.pages.charts import columns, distribution
from vllm_quant_plugin.pages.document import document, made_by
from vllm_quant_plugin.pages.markup import (
    Column,
    Html,
    Sizes,
    bullets,
    folded,
    heading,
    join,
    section,
    table,
    tag,
    tiles,
)
from vllm_quant_plugin.sizes import format_size


def _change(text: TextResult) -> float | None:
    """Relative change of the perplexity."""
    there = text.reference_perplexity
    return None if there is None else text.perplexity / there - 1


def _kl_digits(value: float) -> str:
    """Three significant digits without an exponent."""
    return f"{value:.5f}" if value < 0.01 else f"{value:.4f}" if value < 0.1 else f"{value:.3f}"


def _verdict(report: EvalReport) -> tuple[Html, str]:
    """The outcome in one line: how much smaller, and what it cost on the worst of the texts."""
    compared = [(text.kl, text.noise, _change(text)) for text in report.texts if text.kl is not None]
    if not compared:
        shown = ", ".join(f"{text.perplexity:.2f} on {text.text}" for text in report.texts)
        return join(tag("strong", f"Perplexity {shown}."), " No original was given to compare with."), ""
    smaller = _smaller(report)
    start = join(tag("strong", f"{smaller}."), " ") if smaller else ""
    if all(noise is not None and kl.mean <= noise.mean for kl, noise, _ in compared):
        return join(start, "No difference from the original beyond its own rounding noise."), "good"
    change = max(change for _, _, change in compared if change is not None)
    agreement = min(kl.top1_agreement for kl, _, _ in compared)
    said = (
        f"Perplexity changes by {change:+.1%} at most; the most likely token stays the same for {agreement:.1%} of"
        " tokens or more."
    )
    return join(start, said), ""


def _smaller(report: EvalReport) -> str:
    """``2.73 times smaller``, where both sizes are known."""
    if not report.model_bytes or not report.reference_bytes:
        return ""
    ratio = report.reference_bytes / report.model_bytes
    return f"{ratio:.2f} times smaller" if ratio >= 1 else f"{1 / ratio:.2f} times larger"


def _tiles(report: EvalReport) -> Html:
    rows = []
    if report.model_bytes:
        figure, _, unit = format_size(report.model_bytes).partition(" ")
        before = f"was {format_size(report.reference_bytes)}" if report.reference_bytes else "weights"
        rows.append(("Size of the weights", figure, unit, before))
    changes = [(change, text) for text in report.texts if (change := _change(text)) is not None]
    if changes:
        change, worst = max(changes, key=lambda item: item[0])
        rows.append(("Perplexity", f"{100 * change:+.2f}", "%", f"at most, on {worst.text}"))
    compared = [text for text in report.texts if text.kl is not None]
    if compared:
        most = max(compared, key=lambda text: text.kl.mean if text.kl else 0.0)
        least = min(compared, key=lambda text: text.kl.top1_agreement if text.kl else 1.0)
        assert most.kl is not None
        assert least.kl is not None
        floor = f"; noise floor {_kl_digits(most.noise.mean)}" if most.noise else ""
        rows.append(("Mean KL divergence", _kl_digits(most.kl.mean), "nats/token", f"at most{floor}"))
        floor = f"; noise floor {most.noise.top1_agreement:.1%}" if most.noise else ""
        rows.append(("Top-1 agreement", f"{100 * least.kl.top1_agreement:.1f}", "%", f"at least{floor}"))
    return tiles(rows)


def _sizes(report: EvalReport) -> Html | None:
    if not report.model_bytes or not report.reference_bytes:
        return None
    sizes = Sizes.of([report.model_bytes, report.reference_bytes])
    saved = 1 - report.model_bytes / report.reference_bytes
    rows = [["original", sizes.show(report.reference_bytes), "100.0%"],
            ["this model", sizes.show(report.model_bytes), f"{1 - saved:.1%}"]]  # fmt: skip
    heads = [Column("weights"), Column(sizes.unit, number=True), Column("of the original", number=True)]
    return section("Size before and after", table(heads, rows, cards=False, caption="size before and after"))


def _perplexities(report: EvalReport) -> Html:
    compared = any(text.reference_perplexity is not None for text in report.texts)
    heads = [Column("text"), Column("windows x tokens", number=True),
             *([Column("original", number=True)] if compared else []), Column("this model", number=True),
             *([Column("change, %", number=True)] if compared else [])]  # fmt: skip
    rows: list[list[object]] = []
    for text in report.texts:
        change = _change(text)
        there = [] if change is None else [f"{text.reference_perplexity:,.3f}"]
        off = [] if change is None else [f"{100 * change:+.2f}"]
        rows.append([text.text, f"{text.windows} x {text.window_len}", *there, f"{text.perplexity:,.3f}", *off])
    return section("Perplexity", table(heads, rows, caption="perplexity"))


def _divergences(report: EvalReport) -> Html | None:
    def cells(kl: Divergence) -> list[str]:
        values = (kl.mean, kl.median, kl.p95, kl.p999, kl.maximum)
        return [*(f"{value:.5f}" for value in values), f"{100 * kl.top1_agreement:.2f}"]

    rows = []
    for text in report.texts:
        if text.kl is not None:
            rows.append([text.text, *cells(text.kl)])
        if text.noise is not None:
            rows.append([f"{text.text}, noise floor", *cells(text.noise)])
    if not rows:
        return None
    heads = [Column("text"), *(Column(name, number=True)
             for name in ("mean", "median", "p95", "p99.9", "maximum", "top-1 agreement, %"))]  # fmt: skip
    notes = []
    if report.noise:
        notes.append(f"Noise floor: the original against itself, computed in {report.noise}. Differences below it mean"
                     " nothing.")  # fmt: skip
    if report.kl_method == "top-k":
        notes.append("KL over the original's top 512 tokens, all others counted as one: a lower bound.")
    plots = [_histogram(text) for text in report.texts if text.kl is not None]
    return section(
        "KL divergence from the original, nats per token", table(heads, rows, caption="KL divergence"),
        *(tag("p", note, class_="note") for note in notes), tag("div", join(*plots), class_="pair"),
    )  # fmt: skip


def _histogram(text: TextResult) -> Html:
    assert text.kl is not None
    series = [("this model", text.kl.histogram), *([("noise floor", text.noise.histogram)] if text.noise else [])]
    return distribution(f"KL of every token of {text.text}", series, HISTOGRAM_DECADES[0], BINS_PER_DECADE,
                        "share of tokens, %", "KL of a token, nats")  # fmt: skip


def _layers(report: EvalReport) -> Html | None:
    if not report.layers:
        return None
    bars = [(row.layer, 100 * row.error) for row in report.layers]
    plot = columns("Hidden states after each decoder layer", bars, "relative error, %", "decoder layer")
    heads = [Column("layer"), Column("relative error, %", number=True)]
    rows = [[row.layer, f"{100 * row.error:.4f}"] for row in report.layers]
    inner = tag("details", join(tag("summary", f"The {len(rows)} figures", class_="small"),
                                table(heads, rows, cards=False, caption="error after each layer")))  # fmt: skip
    return section("Error of the hidden states", plot, inner)


def _modules(lost: dict[str, float] | None) -> Html | None:
    if not lost:
        return None
    worst = sorted(lost.items(), key=lambda item: -item[1])
    heads = [Column("module"), Column("lost, %", number=True)]
    rows = [[module, f"{100 * error:.4f}"] for module, error in worst]
    about = tag(
        "p", "Share of the energy of each module's output that was lost on the calibration text.", class_="note"
    )
    return folded(
        "Error of each module", f"{len(rows)}, from {100 * worst[-1][1]:.2g} to {100 * worst[0][1]:.2g}% of the output",
        about, table(heads, rows, cards=False, caption="error of each module"),
    )  # fmt: skip


def html_report(report: EvalReport, name: str, recipe: str | None = None, lost: dict[str, float] | None = None) -> str:
    """The page.

    Args:
        name: of the model, in the heading.
        recipe: how it was made.
        lost: per module, the share of its output's energy that was lost on the calibration text.
    """
    said, mood = _verdict(report)
    of = f"made of {report.reference}" if report.reference else ""
    parts = [
        heading("Quality report", name, ", ".join(one for one in (recipe, of) if one), said, mood),
        _tiles(report),
        _sizes(report),
        _perplexities(report),
        _divergences(report),
        _layers(report),
        _modules(lost),
        section("Notes", bullets(report.notes)) if report.notes else None,
        made_by(
            *([f"vLLM {report.vllm}"] if report.vllm else []), f"measured in {report.dtype}, {report.seconds:.0f} s"
        ),
    ]
    return document(f"Quality of {name}", join(*parts))
