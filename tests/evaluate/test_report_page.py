"""The report as a page, a gate and a card, from figures alone."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from vllm_quant_plugin.errors import BackendError, QualityError
from vllm_quant_plugin.evaluate.harness import run_tasks
from vllm_quant_plugin.evaluate.html import html_report
from vllm_quant_plugin.evaluate.plots import bar_plot, histogram_plot
from vllm_quant_plugin.evaluate.quality import with_quality
from vllm_quant_plugin.evaluate.report import (
    BINS_PER_DECADE,
    HISTOGRAM_DECADES,
    EvalReport,
    LayerError,
    TextResult,
    histogram,
    require_quality,
    summarize_kl,
)


def _report(mean: float = 0.01) -> EvalReport:
    kl = summarize_kl([mean / 2, mean, mean * 1.5], [True, True, False])
    noise = summarize_kl([1e-5, 2e-5], [True, True])
    texts = [
        TextResult("a.txt", 2, 4, 6, 10.5, 10.0, kl, noise),
        TextResult("b <&> c.txt", 2, 4, 6, 20.5, 20.0, summarize_kl([mean], [True]), noise),
    ]
    layers = [LayerError(f"model.layers.{i}", 0.01 * (i + 1)) for i in range(5)]
    return EvalReport("out", "base", "bfloat16", "full", 3.0, texts, layers, "bfloat16 and float32", ["a note"])


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_stands_alone() -> None:
    text = html_report(_report(), "out <1>", "a recipe", {"model.layers.0.mlp": 0.02})
    page = _Page()
    page.feed(text)
    assert page.open == []
    assert page.links == []
    assert "http" not in text
    assert "url(" not in text
    assert "prefers-color-scheme: dark" in text
    assert "out &lt;1&gt;" in text
    assert "b &lt;&amp;&gt; c.txt" in text
    for shown in ("10.500", "0.01000", "noise floor", "model.layers.4", "a note", "2.0000%", "66.67%"):
        assert shown in text, shown
    assert len(re.findall("<svg", text)) == 3


def test_histogram_bins_are_decades() -> None:
    low, high = HISTOGRAM_DECADES
    counts = histogram([0.0, 1e-30, 10.0**low, 1.0, 1.0, 1e9])
    assert len(counts) == (high - low) * BINS_PER_DECADE
    assert sum(counts) == 6
    assert counts[0] == 3
    assert counts[-low * BINS_PER_DECADE] == 2
    assert counts[-1] == 1


@pytest.mark.parametrize("values", [(), (0.0,), (0.5, 0.25)])
def test_plots_are_well_formed(values: tuple[float, ...]) -> None:
    drawn = ElementTree.fromstring(bar_plot("a & b", [(f"<{v}>", v) for v in values], "y"))
    heights = [float(node.attrib["height"]) for node in drawn.iter() if node.tag == "rect"]
    assert len(heights) == len(values)
    if len(values) == 2:
        assert heights[0] == pytest.approx(2 * heights[1], rel=0.01)
    ElementTree.fromstring(histogram_plot("a & b", [("model", histogram(values)), ("noise", histogram([1e-3]))]))


def test_the_gate() -> None:
    require_quality(_report(0.01), None)
    require_quality(_report(0.01), 0.02)
    with pytest.raises(QualityError, match="above --max-kl") as caught:
        require_quality(_report(0.03), 0.02)
    assert caught.value.exit_code == 9
    with pytest.raises(QualityError, match="not measured"):
        require_quality(EvalReport("out", None, "bfloat16", None, 1.0), 0.02)


def test_the_card_takes_the_figures_between_its_marks() -> None:
    card = "before\n<!-- quality -->\nNot measured.\n<!-- end of quality -->\nafter\n"
    made = with_quality(card, _report())
    assert made.startswith("before\n")
    assert made.endswith("after\n")
    assert "Not measured" not in made
    assert "| a.txt | 10.500 | 10.000 | 0.01000 |" in made
    assert with_quality(made, _report(0.02)).count("| a.txt |") == 1
    assert with_quality("a card without marks", _report()) == "a card without marks"


def test_tasks_without_the_harness_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    with pytest.raises(BackendError, match="lm_eval is missing") as caught:
        run_tasks("model", ["arc_easy"])
    assert "pip install lm-eval" in caught.value.hint
