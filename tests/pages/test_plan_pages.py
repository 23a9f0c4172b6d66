"""What the pages of a plan and of a comparison say, without a browser."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest

from tests.pages.samples import model_folder
from vllm_quant_serve.plan.api import Plan, PlanRequest, make_plan
from vllm_quant_serve.plan.output.compare_html import compare_html
from vllm_quant_serve.plan.output.html import page
from vllm_quant_serve.plan.output.render import command_line
from vllm_quant_serve.plan.search.compare import Row


def shown(text: str) -> str:
    """The text of a page's body, elements apart by a bar."""
    body = text.partition("<body>")[2].partition("<script>")[0]
    return unescape(re.sub(r"\|+", "|", re.sub(r"<[^>]*>", "|", body)))


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setenv("VQP_LEDGER", str(tmp_path / "none.sqlite"))
    return make_plan(PlanRequest(str(model_folder(tmp_path, "llama-3.3-70b", "model")), gpu=("h100:8",)))


def test_figures_of_the_page_are_the_plans(plan: Plan) -> None:
    text, speed = shown(page(plan, ["a line", "  and one of its own"])), plan.prediction
    assert speed is not None
    for figure in (
        f"{speed.tpot * 1e3:.1f}| ms",
        f"{speed.tokens_per_second:,.0f}| tokens/s",
        f"{plan.kv_tokens.value:,}| tokens",
        f"{plan.weight_bytes_per_rank / 2**30:.2f}|",
        command_line(plan),
        "Fits.",
        "roofline estimates, not measurements",
        "and one of its own",
    ):
        assert figure in text, figure
    chosen = re.search(r'<tr class="chosen".*?</tr>', page(plan, []))
    assert chosen
    assert shown(f"<body>{chosen[0]}").startswith(f"|TP {plan.tensor_parallel_size}|chosen|")


def test_without_an_estimate_no_speed_is_shown(plan: Plan) -> None:
    candidates = tuple(replace(one, tpot=None, tokens_per_second=None, ttft=None) for one in plan.candidates)
    text = shown(page(replace(plan, prediction=None, candidates=candidates), []))
    for absent in ("ms per token", "tokens per second", "roofline", "Throughput"):
        assert absent not in text, absent
    assert "KV tokens" in text


def test_a_tight_plan_is_not_called_good(plan: Plan) -> None:
    candidates = tuple(replace(one, reason=f"{one.reason}, tight") for one in plan.candidates)
    text = page(replace(plan, candidates=candidates), [])
    assert 'class="verdict warn"' in text
    assert "Fits, but tight." in text


def row(method: str, devices: int | None) -> Row:
    fits = devices is not None
    figures = (1 << 30, 1000, 0.01, 100.0) if fits else (None, None, None, None)
    return Row(method, fits, "" if fits else "too large", devices, *figures, "some", "a source")


@pytest.mark.parametrize(
    ("devices", "verdict"),
    [
        ((4, 2, 2), "All methods fit.| Fewest devices with the least expected loss: B on 2 devices, where A needs 4."),
        ((1, 1, 1), "All methods fit.| Fewest devices with the least expected loss: A on 1 device."),
        ((None, 2, 1), "2 of 3 methods fit.| Fewest devices with the least expected loss: C on 1 device, where A does"
                       " not fit."),
        ((None, None, None), "Nothing fits.| The reasons are below."),
    ],
)  # fmt: skip
def test_the_verdict_of_a_comparison(devices: tuple[int | None, ...], verdict: str) -> None:
    text = compare_html("m", [row(name, count) for name, count in zip("ABC", devices, strict=True)])
    assert verdict in shown(text)
    assert ("too large" in text) == (None in devices)
    assert text.count('class="chosen"') == any(devices)
