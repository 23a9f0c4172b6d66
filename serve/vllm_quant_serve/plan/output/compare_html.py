"""``plan --compare --html FILE``: the methods side by side as a page that stands alone. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_quant_plugin.pages.document import document, made_by, write_text
from vllm_quant_plugin.pages.markup import (
    NOTHING,
    Column,
    Html,
    Sizes,
    bullets,
    figure,
    heading,
    join,
    section,
    table,
    tag,
    without_empty,
)
from vllm_quant_serve.plan.output.html import short_name

if TYPE_CHECKING:
    from vllm_quant_serve.plan.search.compare import Row


def _chosen(rows: Sequence[Row]) -> int | None:
    """The first method, in the order of expected loss, of those that need the fewest devices."""
    fitting = [row for row in rows if row.fits and row.devices is not None]
    return rows.index(min(fitting, key=lambda row: row.devices or 0)) if fitting else None


def _verdict(rows: Sequence[Row], chosen: int | None) -> tuple[Html, str]:
    fitting = [row for row in rows if row.fits]
    if chosen is None:
        return join(tag("strong", "Nothing fits."), " The reasons are below."), "bad"
    best, all_fit = rows[chosen], len(fitting) == len(rows)
    count = "All methods fit." if all_fit else f"{len(fitting)} of {len(rows)} methods fit."
    devices = f"{best.devices} device{'s' * (best.devices != 1)}"
    said = f" Fewest devices with the least expected loss: {best.method} on {devices}"
    original = rows[0]
    if best is not original:
        said += f", where {original.method} {f'needs {original.devices}' if original.fits else 'does not fit'}"
    return join(tag("strong", count), said, "."), "good" if all_fit else "warn"


def _table(rows: Sequence[Row], chosen: int | None) -> Html:
    sizes = Sizes.of([row.weight_bytes_per_rank for row in rows])
    columns = [Column("method"), Column("devices", number=True), Column(f"weights per rank, {sizes.unit}", number=True),
               Column("KV tokens", number=True), Column("ms per token", number=True),
               Column("tokens per second", number=True), Column("expected loss")]  # fmt: skip
    body: list[list[object]] = []
    for i, row in enumerate(rows):
        name = join(row.method, tag("span", "fewest devices", class_="tag")) if i == chosen else row.method
        if not row.fits:
            name = join(row.method, " ", tag("strong", "does not fit", class_="bad"))
            body.append([name, *[NOTHING] * 5, row.loss])
            continue
        body.append([name, figure(row.devices), sizes.show(row.weight_bytes_per_rank), figure(row.kv_tokens),
                     figure(None if row.tpot is None else row.tpot * 1e3, 1), figure(row.tokens_per_second),
                     row.loss])  # fmt: skip
    return table(*without_empty(columns, body), chosen=chosen, caption="methods side by side")


def _grouped(rows: Sequence[Row], text_of: Callable[[Row], str]) -> list[str]:
    """Each text once, after the methods that it holds for."""
    texts = dict.fromkeys(text_of(row) for row in rows)
    groups = {text: [row.method for row in rows if text_of(row) == text] for text in texts if text}
    return [f"{'all' if len(names) == len(rows) else ', '.join(names)}: {text}" for text, names in groups.items()]


def compare_html(model: str, rows: Sequence[Row], *, devices: str = "") -> str:
    """The page.

    Args:
        model: as the user named it.
        rows: from ``compare``, by increasing expected loss.
        devices: what was planned for, e.g. ``4 x H100 SXM 80GB``.
    """
    chosen = _chosen(rows)
    said, mood = _verdict(rows, chosen)
    reasons = [f"{row.method}: {row.reason}" for row in rows if not row.fits and row.reason]
    notes = _grouped(rows, lambda row: row.reason if row.fits else "")
    sources = _grouped(rows, lambda row: row.source)
    speeds = any(row.tokens_per_second is not None for row in rows)
    estimate = tag("p", "Times and throughput are roofline estimates, not measurements.", class_="note")
    about = f"{model}, on {devices}" if devices else model
    parts = [
        heading("Comparison of methods", short_name(model), about, said, mood),
        section("Methods side by side", _table(rows, chosen), estimate if speeds else None),
        section("Why it does not fit", bullets(reasons)) if reasons else None,
        section("Notes", bullets(notes)) if notes else None,
        section("Where the expected losses were published", bullets(sources)) if sources else None,
        made_by("vllm-quant plan --compare", "made from config.json and safetensors headers"),
    ]
    return document(f"Methods for {short_name(model)}", join(*parts))


def write_comparison(model: str, rows: Sequence[Row], path: Path, *, devices: str = "") -> None:
    """Write the page, complete or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    write_text(compare_html(model, rows, devices=devices), path)
