"""The report as a page, a gate and a card, from figures alone."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from vllm_quant_plugin.errors import BackendError, QualityError
from vllm_quant_plugin.evaluate.harness import run_tasks
from vllm_quant_plugin.evaluate.html import html_report
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
    return EvalReport("out", "base", "bfloat16", "full", 3.0, texts, layers, "bfloat16 and float32", ["a note"],
                      1 << 30, 2 << 30, "0.99")  # fmt: skip


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in ("meta", "link"):
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
    assert page.links == ["data:,"]
    assert "url(" not in text
    assert "prefers-color-scheme: dark" in text
    assert "out &lt;1&gt;" in text
    assert "b &lt;&amp;&gt; c.txt" in text
    for shown in ("10.500", "0.01000", "noise floor", "model.layers.4", "a note", "2.0000", "66.67", "vLLM 0.99",
                  "2.00 times smaller", "+5.00", "was 2.00 GiB"):  # fmt: skip
        assert shown in text, shown
    assert len(re.findall('<svg class="chart"', text)) == 3


def test_without_an_original_nothing_is_compared() -> None:
    report = EvalReport("out", None, "bfloat16", None, 3.0, [TextResult("a.txt", 2, 4, 6, 10.5)], model_bytes=1 << 30)
    text = html_report(report, "out")
    assert "Perplexity 10.50 on a.txt." in text
    assert "No original was given" in text
    for absent in ("smaller", "KL divergence", "original</th>", "None"):
        assert absent not in text, absent


def test_a_loss_within_the_noise_is_said_to_be_none() -> None:
    report = _report()
    report.texts = [replace(text, kl=text.noise) for text in report.texts]
    assert "No difference from the original beyond its own rounding noise." in html_report(report, "out")


def test_histogram_bins_are_decades() -> None:
    low, high = HISTOGRAM_DECADES
    counts = histogram([0.0, 1e-30, 10.0**low, 1.0, 1.0, 1e9])
    assert len(counts) == (high - low) * BINS_PER_DECADE
    assert sum(counts) == 6
    assert counts[0] == 3
    assert counts[-low * BINS_PER_DECADE] == 2
    assert counts[-1] == 1


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
