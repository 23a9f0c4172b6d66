"""The status page in a real browser: figures, bars and charts, on a desk and on a phone, without foreign requests."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.chromium import Page, chromium
from tests.support.served_page import Served
from vllm_quant_serve.supervise.actuals import Actuals
from vllm_quant_serve.supervise.state import State

MARKUP = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    one = Served(tmp_path_factory.mktemp("run"))
    yield one
    one.stop()


@pytest.fixture(scope="module")
def page(served: Served) -> Iterator[Page]:
    with chromium() as one:
        yield one


def text(page: Page, name: str) -> str:
    return str(page.ask(f"document.getElementById('{name}').textContent"))


def test_while_it_loads_nothing_is_made_up(served: Served, page: Page) -> None:
    page.open(served.url)
    page.wait_for("document.getElementById('state')?.textContent === 'starting'")
    assert text(page, "flight") == "\u2013", "unknown is no zero"
    assert text(page, "usage") == "\u2013"
    assert "no figures yet" in text(page, "tokens")
    assert page.ask("document.querySelectorAll('#memory svg.bar').length") == 1, "a plan, and no actual figure"


def test_a_running_server(served: Served, page: Page) -> None:
    one, now = served.session, time.time()
    one.state = State.READY
    plan = one.plan
    assert plan is not None
    tokens = plan["kv_tokens"]["value"]
    one.actuals = Actuals(weight_bytes=1 << 30, kv_bytes=2 << 30, kv_tokens=tokens + tokens // 100)
    for second in range(60):
        one.history.samples.append({"time": now - 60 + second, "generation_rate": 100.0 + second, "kv_usage": 0.25,
                                    "running": 3.0, "waiting": 1.0, "ttft": 0.05})  # fmt: skip
    one.report.event("retry", f"not enough memory {MARKUP}")
    page.wait_for("document.getElementById('state').textContent === 'ready'")
    assert text(page, "generation") == "159"
    assert text(page, "usage") == "25.0"
    assert page.ask("document.querySelectorAll('#memory svg.bar').length") == 2, "plan beside actual"
    assert "+1.0" in text(page, "figures")
    for chart in ("tokens", "latency", "requests", "utilization"):
        assert page.ask(f"document.querySelectorAll('#{chart} path').length") >= 1, chart
    assert MARKUP in text(page, "events"), "what the server says is text"
    assert page.ask("document.images.length") == 0
    assert one.launch.line in text(page, "command")


@pytest.mark.parametrize(("width", "phone"), [(1200, False), (390, True), (320, True)])
def test_it_fits_the_screen(served: Served, page: Page, tmp_path: Path, width: int, phone: bool) -> None:
    page.size(width, 844, phone=phone)
    page.open(served.url)
    page.wait_for("document.getElementById('state')?.textContent === 'ready'")
    assert page.ask("document.documentElement.scrollWidth") <= width, "nothing to scroll sideways"
    sizes = page.ask("[...document.querySelectorAll('body *')].filter(e => e.textContent.trim() && !e.children.length)"
                     ".map(e => parseFloat(getComputedStyle(e).fontSize))")  # fmt: skip
    assert min(sizes) >= 11
    page.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").read_bytes()[:4] == b"\x89PNG"


def test_nothing_is_asked_of_anybody_else(served: Served, page: Page) -> None:
    assert page.console == []
    assert page.requested
    assert all(url.startswith((served.url, "about:")) for url in page.requested), page.requested


def test_a_supervisor_that_is_gone_is_told(served: Served, page: Page) -> None:
    served.stop()
    page.wait_for("document.getElementById('state').textContent.startsWith('no answer')")
