"""Axes, sizes and escaping, without a browser."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.pages.samples import MARKUP
from vllm_quant_plugin.evaluate.report import BINS_PER_DECADE, HISTOGRAM_DECADES, histogram
from vllm_quant_plugin.pages.charts import columns, distribution, stacked, ticks
from vllm_quant_plugin.pages.document import document, policy
from vllm_quant_plugin.pages.markup import (
    NOTHING,
    Column,
    Sizes,
    bullets,
    command,
    facts,
    folded,
    heading,
    join,
    section,
    table,
    tag,
    tiles,
)


@given(st.floats(1e-9, 1e9), st.integers(2, 8))
def test_axes_have_rounded_steps_that_cover_the_data(high: float, most: int) -> None:
    labels = [float(label.replace(",", "")) for label in ticks(high, most)]
    step = labels[1]
    digits = f"{step:.6e}".partition("e")[0]
    assert float(digits) in (1, 2, 5)
    assert labels == pytest.approx([i * step for i in range(len(labels))])
    assert labels[-1] >= high * (1 - 1e-6), "the largest value is on the axis"
    assert labels[-2] <= high * (1 + 1e-6), "and no step is empty"
    assert len(labels) - 1 <= most


def test_labels_have_the_digits_of_their_step() -> None:
    assert ticks(7.3) == ["0", "2", "4", "6", "8"]
    assert ticks(0.26) == ["0.0", "0.1", "0.2", "0.3"]
    assert ticks(2300) == ["0", "500", "1,000", "1,500", "2,000", "2,500"]
    assert ticks(0.0) == ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]


@pytest.mark.parametrize("values", [(), (0.0,), (0.5, 0.25)])
def test_bars_are_in_proportion(values: tuple[float, ...]) -> None:
    drawn = ElementTree.fromstring(columns("a & b", [(f"<{v}>", v) for v in values], "y", "x"))
    bars = [node for node in drawn.iter("rect") if node.attrib.get("class") == "column"]
    heights = [float(node.attrib["height"]) for node in bars]
    assert len(heights) == len(values)
    if len(values) == 2:
        assert heights[0] == pytest.approx(2 * heights[1], abs=0.02)


def test_a_histogram_shows_the_bins_that_hold_anything() -> None:
    low = HISTOGRAM_DECADES[0]
    model, noise = histogram([2e-3] * 3 + [2e-2]), histogram([2e-5])
    drawn = ElementTree.fromstring(
        distribution("KL", [("model", model), ("noise", noise)], low, BINS_PER_DECADE, "%", "nats")
    )
    labels = [node.text for node in drawn.iter("text")]
    # 2e-5 is in the second quarter of its decade, 2e-2 likewise: the decades between and no others.
    assert [label for label in labels if label and "e" in label] == ["1e-4", "1e-3", "1e-2"]
    plot = next(node for node in drawn.iter("svg") if "viewBox" in node.attrib and node.attrib["width"] == "100%")
    assert plot.attrib["viewBox"] == f"0 0 {3 * BINS_PER_DECADE + 1} 100"
    area, outline = (node.attrib["d"] for node in plot.iter("path"))
    # Three of four values: 75%, of an axis to 100.
    assert "L8,25.000L9,25.000" in area
    assert "L0,0.000L1,0.000" in outline


def test_histograms_of_nothing_and_of_the_least_are_drawn() -> None:
    for counts in (histogram([]), histogram([0.0]), ()):
        ElementTree.fromstring(distribution("t", [("a", counts)], HISTOGRAM_DECADES[0], BINS_PER_DECADE, "y", "x"))
    drawn = distribution("t", [("a", histogram([0.0]))], HISTOGRAM_DECADES[0], BINS_PER_DECADE, "y", "x")
    assert f"≤ 1e{HISTOGRAM_DECADES[0]}" in drawn


def test_parts_of_a_bar_fill_it() -> None:
    drawn = ElementTree.fromstring(stacked("memory", [("a", 1, "weights"), ("b", 2, "cache"), ("c", 1, "unused")]))
    spans = [
        (float(node.attrib["x"].rstrip("%")), float(node.attrib["width"].rstrip("%"))) for node in drawn.iter("rect")
    ]
    assert spans == [(0, 25), (25, 50), (75, 25)]


def test_a_column_of_bytes_has_one_unit() -> None:
    sizes = Sizes.of([14_688_768, 79 << 30, None, 0])
    assert (sizes.unit, sizes.show(79 << 30), sizes.show(14_688_768), sizes.show(None)) == (
        "GiB",
        "79.000",
        "0.014",
        NOTHING,
    )
    assert Sizes.of([]).show(0) == "0"
    assert Sizes.of([3 << 20]).show(3 << 20) == "3.00"


def test_every_helper_escapes() -> None:
    columns_ = [Column(MARKUP), Column(MARKUP, number=True)]
    made = join(
        heading(MARKUP, MARKUP, MARKUP, MARKUP), section(MARKUP, MARKUP), folded(MARKUP, MARKUP, MARKUP),
        table(columns_, [[MARKUP, MARKUP]], caption=MARKUP), facts([(MARKUP, MARKUP)]), bullets([MARKUP, f" {MARKUP}"]),
        tiles([(MARKUP, MARKUP, MARKUP, MARKUP)]), command(MARKUP), columns(MARKUP, [(MARKUP, 1.0)], MARKUP, MARKUP),
        distribution(MARKUP, [(MARKUP, histogram([1.0]))], -9, 4, MARKUP, MARKUP), stacked(MARKUP, [(MARKUP, 1, "x")]),
        tag("p", MARKUP, title=MARKUP),
    )  # fmt: skip
    page = document(MARKUP, made)
    assert "<img" not in page
    assert page.count("<script") == 1
    inner = ElementTree.fromstring(f"<div>{made.replace(' hidden', '')}</div>")
    assert all(not name.startswith("on") for node in inner.iter() for name in node.attrib)


def test_pages_load_nothing() -> None:
    page = document("a title", tag("p", "text"))
    assert re.findall(r"(?:src|href)=\"([^\"]*)\"", page) == ["data:,"]
    assert "url(" not in page
    assert "@import" not in page
    assert "http:" not in page.replace("http-equiv", "")
    assert "'unsafe-inline'" not in page
    assert " style=" not in page


def test_the_policy_hashes_what_it_is_given() -> None:
    # The hash of an empty text is known.
    assert "style-src 'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='" in policy([""], ["a"])
