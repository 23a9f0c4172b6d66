"""Every page in a real browser, on a phone and a desktop, in light and dark: layout, sizes, contrast, copying, markup.

``--screenshots DIR`` keeps a picture of each.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pages.samples import MARKUP, fill, model_folder, write_compare, write_plan, write_quality
from tests.support.chromium import Page, chromium
from tests.support.served_page import Served

AUDIT = Path(__file__).with_name("audit.js").read_text()
PAGES = ("plan", "compare", "quality", "status")
WIDTHS = (390, 1280)
# What a picture holds is checked by the tests below; these names are those in docs/pages.
SCHEMES = ("light", "dark")


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    folder = tmp_path_factory.mktemp("pages")
    model = model_folder(folder, "llama-3.3-70b", "Llama-3.3-70B-Instruct")
    write_plan(model, folder / "plan.html", gpu=("h100:8",), price=2.5)
    write_compare(model, folder / "compare.html")
    write_quality(folder / "quality.html")
    served = Served(folder)
    fill(served.session)
    yield {**{name: (folder / f"{name}.html").as_uri() for name in PAGES[:3]}, "status": served.url}
    served.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with chromium() as page:
        yield page


def show(page: Page, address: str, width: int, scheme: str = "light") -> dict[str, Any]:
    """Open a page and audit it."""
    page.look(scheme=scheme)
    page.size(width, 900, phone=width < 500)
    page.open(address)
    page.wait_for("document.readyState === 'complete' && document.querySelector('h1')"
                  " && document.getElementById('state')?.textContent !== 'connecting'")  # fmt: skip
    found = page.ask(AUDIT)
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_layout(
    name: str, width: int, scheme: str, addresses: dict[str, str], browser: Page, request: pytest.FixtureRequest
) -> None:
    found = show(browser, addresses[name], width, scheme)
    assert found["width"] <= width, "nothing to scroll sideways"
    assert found["overflowing"] == []
    assert found["smallest"] >= 11, "pixels of text, in charts too"
    assert found["contrasts"] == [], "4.5:1 or more"
    assert found["left_numbers"] == [], "numbers stand on the right"
    assert found["uneven_numbers"] == [], "digits of one width"
    assert found["clipped"] == [], "no label leaves its chart"
    assert found["lang"] == "en"
    assert found["h1"] == 1
    assert found["verdict"]
    assert found["open_details"] == 0
    assert found["unlabelled"] == [], "buttons and drawings have names"
    assert "vllm-quant 0." in found["footer"], "version"
    assert "202" in found["footer"], "and date"
    assert browser.console == []
    place = request.config.getoption("--screenshots")
    if place:
        picture = Path(place) / f"{name}-{width}-{scheme}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        browser.screenshot(picture)
        if shutil.which("pngquant"):
            subprocess.run(["pngquant", "--force", "--ext", ".png", "64", str(picture)], check=True)


@pytest.mark.parametrize("name", PAGES)
def test_dark_is_dark(name: str, addresses: dict[str, str], browser: Page) -> None:
    light, dark = (show(browser, addresses[name], 1280, scheme)["background"] for scheme in SCHEMES)
    assert sum(dark) < 150 < 600 < sum(light)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(("name", "row"), [("plan", "TP 4"), ("compare", "FP8")])
def test_the_chosen_row_is_marked(name: str, row: str, width: int, addresses: dict[str, str], browser: Page) -> None:
    show(browser, addresses[name], width)
    marked = browser.ask("[...document.querySelectorAll('tr.chosen')].map(e => [e.textContent,"
                         " e.getAttribute('aria-current'), getComputedStyle(e.cells[0]).backgroundColor,"
                         " getComputedStyle(e).backgroundColor])")  # fmt: skip
    assert len(marked) == 1
    text, current, *colors = marked[0]
    assert text.startswith(row)
    assert current == "true"
    assert any(color not in ("rgba(0, 0, 0, 0)", "rgb(255, 255, 255)") for color in colors)


@pytest.mark.parametrize("name", ["plan", "status"])
@pytest.mark.parametrize("clipboard", [True, False])
def test_the_command_is_copied(name: str, clipboard: bool, addresses: dict[str, str], browser: Page) -> None:
    """Also where neither the old nor the new way of copying works: then it is selected, and the page says so."""
    show(browser, addresses[name], 1280)
    command = browser.ask("document.getElementById('command').textContent")
    assert command.startswith("vllm serve")
    if not clipboard:
        browser.ask("document.execCommand = () => false;"
                    " Object.defineProperty(navigator, 'clipboard', { value: undefined })")  # fmt: skip
    browser.click("button[data-copies]")
    said = browser.wait_for("document.getElementById('command-said').textContent")
    assert browser.ask("getSelection().toString().trim()") == command
    if clipboard:
        assert said == "Copied."
        assert browser.paste() == command
    else:
        assert "Ctrl+C" in said


def test_tables_of_hundreds_of_figures_are_folded(addresses: dict[str, str], browser: Page) -> None:
    show(browser, addresses["quality"], 390)
    modules = "[...document.querySelectorAll('details')].find(e => e.querySelectorAll('tbody tr').length === 56)"
    assert browser.ask(f"!{modules}.open && {modules}.querySelector('table').checkVisibility()") is False
    browser.ask(f"{modules}.open = true")
    assert browser.ask(f"{modules}.querySelector('table').checkVisibility()") is True
    assert browser.ask("document.documentElement.scrollWidth") <= 390, "open, it fits too"


@pytest.mark.parametrize("name", ["quality", "status"])
def test_charts_are_laid_out_anew(name: str, addresses: dict[str, str], browser: Page) -> None:
    """At both widths the text has the same size in pixels, and the plot has the width of its box."""
    ask = ("[...document.querySelectorAll('svg text')].filter(e => e.checkVisibility())"
           ".map(e => [Math.round(e.getBoundingClientRect().height), e.textContent])")  # fmt: skip
    labels = {}
    for width in (1280, 390):
        show(browser, addresses[name], width)
        labels[width] = browser.wait_for(ask)
    assert {height for height, _ in labels[390]} == {height for height, _ in labels[1280]}
    if name == "quality":
        assert len(labels[390]) < len(labels[1280]), "fewer labels where there is less room"


@pytest.mark.parametrize("name", ["plan", "compare", "quality"])
def test_paper_shows_what_is_folded(name: str, addresses: dict[str, str], browser: Page) -> None:
    show(browser, addresses[name], 1280)
    browser.look(medium="print")
    browser.ask("dispatchEvent(new Event('beforeprint'))")
    assert browser.ask("[...document.querySelectorAll('details')].every(e => e.open)")
    assert browser.ask("document.querySelector('button')?.checkVisibility() || false") is False


def test_a_hostile_model_name_is_text(tmp_path: Path, browser: Page) -> None:
    name = MARKUP.replace("/", "\u2215")
    model = model_folder(tmp_path, "llama-3.2-1b", name)
    write_plan(model, tmp_path / "plan.html", gpu=("h100:1",))
    write_compare(model, tmp_path / "compare.html")
    write_quality(tmp_path / "quality.html", name)
    for page in ("plan", "compare", "quality"):
        show(browser, (tmp_path / f"{page}.html").as_uri(), 390)
        assert browser.ask("document.title") != "hacked"
        assert browser.ask("document.images.length") == 0
        assert browser.ask("document.scripts.length") == 1
        assert browser.ask("document.querySelector('h1').textContent") == name
        assert browser.ask("document.documentElement.scrollWidth") <= 390


def test_injected_code_would_not_run(addresses: dict[str, str], browser: Page) -> None:
    """The page's policy names its own script and style by hash: nothing else is executed or loaded."""
    for name in PAGES:
        show(browser, addresses[name], 1280)
        browser.ask(
            "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.ran = 1'}));"
            "document.body.append(Object.assign(document.createElement('img'), {src: 'https://192.0.2.1/x.png'}))"
        )
        assert browser.ask("window.ran") is None, name
        for refused in ("script", "192.0.2.1"):
            assert any(refused in line and "Content Security Policy" in line for line in browser.console), refused
        browser.console.clear()
