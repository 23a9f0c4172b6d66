"""Every page is linked, no link is broken, and code that the pages name exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
# Folders of the repository whose files are named in full in the pages.
PATH = re.compile(
    r"`((?:benchmarks|deploy|docs|examples|kernels|requirements|scripts|serve|tests|vllm_quant_plugin|"
    r"vllm_quant_kernels|vllm_quant_serve)/[\w./-]*\w/?)"
)
PACKAGES = {"vllm_quant_kernels": "kernels/vllm_quant_kernels", "vllm_quant_serve": "serve/vllm_quant_serve"}
# Written by a run, not tracked.
GENERATED = ("benchmarks/results/",)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def targets(page: Path) -> list[tuple[Path, str]]:
    """File and anchor of every link of ``page`` that stays in the repository."""
    links = [link for link in LINK.findall(FENCE.sub("", page.read_text("utf-8"))) if "://" not in link]
    split = [link.partition("#") for link in links]
    return [((page.parent / file).resolve() if file else page, anchor) for file, _, anchor in split]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of the headings of ``page``."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text("utf-8")), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        base = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        numbered = (f"{base}-{n}" if n else base for n in range(100))
        found.add(next(anchor for anchor in numbered if anchor not in found))
    return found


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_link_is_broken(page: Path) -> None:
    broken = [
        f"{file}#{anchor}"
        for file, anchor in targets(page)
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file))
    ]
    assert broken == []


def test_every_page_is_linked_from_the_index_and_reached_from_the_readme() -> None:
    index = {file for file, _ in targets(ROOT / "docs/README.md")}
    documents = {file for file in (ROOT / "docs").rglob("*") if file.suffix in (".md", ".json")}
    assert documents - index == {ROOT / "docs/README.md"}
    reached, queue = set(), [ROOT / "README.md"]
    while queue:
        page = queue.pop()
        if page not in reached and page.suffix == ".md":
            reached.add(page)
            queue += [file for file, _ in targets(page)]
    assert set(PAGES) - reached == set()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    missing = []
    for named in PATH.findall(page.read_text("utf-8")):
        top, _, rest = named.partition("/")
        file = f"{PACKAGES[top]}/{rest}" if top in PACKAGES else named
        if not named.startswith(GENERATED) and not (ROOT / file).exists():
            missing.append(named)
    assert missing == []


def test_the_readme_summarizes_support_in_eight_rows() -> None:
    section = (ROOT / "README.md").read_text("utf-8").split("## What is supported")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    assert len(rows) - 2 == 8
    assert len({row.count("|") for row in rows}) == 1


def test_figures_of_the_readme_are_those_of_the_results() -> None:
    section = (ROOT / "README.md").read_text("utf-8").split("## Measured")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")][2:]
    # Milliseconds and seconds; the ratios in parentheses follow from them.
    figures = re.findall(r"\d+\.\d+", re.sub(r"\([^)]*\)", "", "\n".join(rows)))
    results = (ROOT / "docs/results/engine-performance.md").read_text("utf-8")
    assert len(figures) == 8
    assert [figure for figure in figures if not re.search(rf"(?<![\d.]){re.escape(figure)}(?![\d.])", results)] == []
