"""The goals of the CPU kernels beside the results of cpu_linear.py, as Markdown.

    python benchmarks/cpu_goals.py results.json [--write docs/results/performance.md]

--write replaces the text between the two marker lines of the document.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHAPE = "Llama-3-8B up"
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
Times = Callable[[int, str], float]  # (M, implementation) to microseconds; KeyError where it did not run


@dataclass(frozen=True)
class Goal:
    """``value(times, bytes)`` is a ratio that must be at least ``least``, and at most ``most`` where that is given."""

    what: str
    value: Callable[[Times, Times], float]
    least: float | None = None
    most: float | None = None
    percent: bool = False

    def text(self, value: float) -> str:
        return f"{value:.0%}" if self.percent else f"{value:.2f}x"

    def reached(self, value: float) -> bool:
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)


def _faster(m: int, ours: str, peer: str) -> Callable[[Times, Times], float]:
    return lambda times, _: times(m, peer) / times(m, ours)


def _over_bytes(name: str) -> Callable[[Times, Times], float]:
    """Time over W4's, divided by bytes over W4's."""
    return lambda times, size: times(1, name) / times(1, "W4") / (size(1, name) / size(1, "W4"))


def _share_of(read: str) -> Callable[[Times, Times], float]:
    return lambda times, size: times(1, read) / times(1, "W4") * size(1, "W4") / size(1, read)


GOALS = [
    Goal("W4, M = 1: share of the bandwidth of a plain read loop", _share_of("read"), 0.8, percent=True),
    Goal("the same, the loop too in pages of 2 MB", _share_of("read, pages of 2 MB"), 0.8, percent=True),
    Goal("W4, M = 1, against in-tree", _faster(1, "W4", "in-tree W4"), 3),
    Goal("W4, M = 8, against in-tree", _faster(8, "W4", "in-tree W4"), 3),
    Goal("W4, M = 1, against torch BF16", _faster(1, "W4", "torch BF16"), 4),
    Goal("W2, M = 1: time over W4's, by the ratio of bytes", _over_bytes("W2"), None, 1.15),
    Goal("W3, M = 1: time over W4's, by the ratio of bytes", _over_bytes("W3"), None, 1.15),
    Goal("W8, M = 1: time over W4's, by the ratio of bytes", _over_bytes("W8"), None, 1.15),
    Goal("W4, M = 512, against in-tree", _faster(512, "W4", "in-tree W4"), 2),
    Goal("W4, M = 512, against torch BF16", _faster(512, "W4", "torch BF16"), 0.9),
    Goal("W8A8, M = 1, against oneDNN INT8", _faster(1, "W8A8", "oneDNN INT8"), 1.3),
    Goal("W8A8, M = 512, against oneDNN INT8", _faster(512, "W8A8", "oneDNN INT8"), 1),
    Goal("FP8, M = 1, against torch BF16", _faster(1, "FP8", "torch BF16"), 1.8),
    Goal("W4A8, M = 8, against in-tree W4", _faster(8, "W4A8", "in-tree W4")),
    Goal("W4A8, M = 512, against in-tree W4", _faster(512, "W4A8", "in-tree W4")),
    Goal("W4A8, M = 512, against torch BF16", _faster(512, "W4A8", "torch BF16")),
    *(Goal(f"W4, M = {m}, against llama.cpp Q4_0", _faster(m, "W4", "llama.cpp Q4_0")) for m in (1, 8, 512)),
    *(Goal(f"W4A8, M = {m}, against llama.cpp Q4_0", _faster(m, "W4A8", "llama.cpp Q4_0")) for m in (1, 8, 512)),
]


def table(results: list[dict[str, Any]], threads: int) -> str:
    """The goals at one number of threads. Minimum times decide; the ratio of medians is shown beside them."""
    rows = {(r["m"], r["name"]): r for r in results if r["shape"] == SHAPE and r["threads"] == threads}

    def column(key: str) -> Times:
        return lambda m, name: rows[m, name][key]

    lines = ["| case | goal | measured | by medians | |", "|---|---|---|---|---|"]
    for goal in GOALS:
        wanted = "-" if goal.least is None and goal.most is None else ""
        wanted += f"at least {goal.text(goal.least)}" if goal.least is not None else ""
        wanted += f"at most {goal.text(goal.most)}" if goal.most is not None else ""
        try:
            best, median = (goal.value(column(key), column("bytes")) for key in ("best_us", "median_us"))
        except KeyError as missing:
            lines.append(f"| {goal.what} | {wanted} | not measured: no {missing.args[0][1]} | | |")
            continue
        verdict = "" if wanted == "-" else "ok" if goal.reached(best) else "**missed**"
        lines.append(f"| {goal.what} | {wanted} | {goal.text(best)} | {goal.text(median)} | {verdict} |")
    return "\n".join(lines)


def times_table(results: list[dict[str, Any]], threads: int) -> str:
    """Minimum times of every implementation by M, in microseconds, and GB/s at M = 1."""
    rows = {(r["m"], r["name"]): r for r in results if r["shape"] == SHAPE and r["threads"] == threads}
    sizes = sorted({m for m, _ in rows})
    names = list(dict.fromkeys(name for _, name in rows))
    lines = ["| | " + " | ".join(f"M = {m}, us" for m in sizes) + " | GB/s at M = 1 |", "|---" * (len(sizes) + 2) + "|"]
    for name in names:
        cells = [f"{rows[m, name]['best_us']:.0f}" if (m, name) in rows else "" for m in sizes]
        one = rows.get((1, name))
        cells.append(f"{one['bytes'] / one['best_us'] / 1e3:.1f}" if one else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def layers_table(results: list[dict[str, Any]], threads: int) -> str:
    """W4 at every other layer shape: microseconds, and how many times as fast as each peer; empty without any."""
    rows = {(r["shape"], r["m"], r["name"]): r["best_us"] for r in results if r["threads"] == threads}
    peers = ("in-tree W4", "torch BF16", "llama.cpp Q4_0")
    lines = [
        "| layer | M | W4, us | " + " | ".join(f"against {peer}" for peer in peers) + " |",
        "|---|---|---|---|---|---|",
    ]
    for shape, m in dict.fromkeys((shape, m) for shape, m, _ in rows if shape != SHAPE):
        ours = rows[shape, m, "W4"]
        cells = [f"{rows[shape, m, p] / ours:.2f}x" if (shape, m, p) in rows else "-" for p in peers]
        lines.append(f"| {shape} | {m} | {ours:.0f} | " + " | ".join(cells) + " |")
    return "\n".join(lines) if len(lines) > 2 else ""


def render(report: dict[str, Any]) -> str:
    """The goals and times of a report, as Markdown."""
    machine, results = report["machine"], report["results"]
    parts = [
        f"Layer 14336 x 4096 ({SHAPE}), groups of 128, BF16 activations, level {machine['level']}, "
        f"{machine['cpus']} CPUs, load average {machine['load_before']:.1f} before the run."
    ]
    for threads in sorted({r["threads"] for r in results}):
        clock = "CPU time" if threads == 1 else "wall clock"
        parts.append(f"### {threads} thread{'s' if threads > 1 else ''} ({clock})")
        parts += [table(results, threads), times_table(results, threads), layers_table(results, threads)]
    return "\n\n".join(part for part in parts if part)


def replace_between(document: str, text: str) -> str:
    """``document`` with ``text`` between its markers. Raises ValueError without them."""
    head, begin, rest = document.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the document has no {BEGIN} ... {END}")
    return f"{head}{BEGIN}\n{text}\n{END}{tail}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    text = render(json.loads(options.results.read_text()))
    if options.write:
        options.write.write_text(replace_between(options.write.read_text(), text))
    else:
        print(text)


if __name__ == "__main__":
    main()
