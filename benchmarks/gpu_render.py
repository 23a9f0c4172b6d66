"""Results of the GPU benchmarks as tables of docs/results/performance.md.

    python benchmarks/gpu_render.py FILE... [--write docs/results/performance.md]

The files come from gpu_linear.py, gpu_experts.py and gpu_plans.py and are distinguished by their cases. Without --write
the tables are printed. gpu_w8a8.py renders its own results; this script skips them.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

Row = dict[str, Any]
OURS = "vqp"


def peers_of(row: Row) -> dict[str, Row]:
    return {name: result for name, result in row["results"].items() if not name.startswith(OURS)}


def against(row: Row) -> str:
    """The best peer and how many times our time it takes."""
    peers = peers_of(row)
    if not peers:
        return "none | "
    best = min(peers, key=lambda name: peers[name]["us"])
    return f"{peers[best]['us']:.1f} ({best}) | {peers[best]['us'] / row['results'][OURS]['us']:.2f}x"


def means(rows: list[Row]) -> dict[str, float]:
    """For each peer: the geometric mean over its cases of its time over ours."""
    ratios: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        for name, result in peers_of(row).items() if OURS in row["results"] else ():
            ratios[name].append(math.log(result["us"] / row["results"][OURS]["us"]))
    return {name: math.exp(statistics.mean(values)) for name, values in sorted(ratios.items())}


def heading(result: Row) -> str:
    return (
        f"{result['gpu']}, torch {result['torch']}, {result['date']}; copy {result['copy_bandwidth'] / 1e12:.2f} TB/s, "
        f"dense BF16 {result['dense_bf16_rate'] / 1e12:.0f} TFLOP/s. Microseconds a call, medians, cold L2."
    )


def closing(rows: list[Row]) -> list[str]:
    lines = [""]
    if found := means(rows):
        text = ", ".join(f"{name} {ratio:.2f}x" for name, ratio in found.items())
        lines.append(f"Geometric mean of a peer's time over ours, where both ran: {text}.")
    for row in rows:
        if "error" in row or OURS not in row["results"]:
            reason = row.get("error") or row["absent"].get(OURS, "no result")
            lines.append(f"- {row['case']}: not measured: {reason}")
    return lines


def linear(result: Row) -> str:
    lines = [heading(result), ""]
    lines += ["| case | M | N x K | bits, group | vqp | of copy | TFLOP/s | without PDL | best peer | peer / vqp |"]
    lines += ["|---|---|---|---|---|---|---|---|---|---|"]
    for row in result["cases"]:
        ours, alone = row["results"].get(OURS), row["results"].get("vqp-no-pdl")
        if ours is None:
            continue
        plain = f"{alone['us']:.1f}" if alone else "absent"
        lines.append(
            f"| {row['case']} | {row['m']} | {row['n']} x {row['k']} | {row['bits']}, {row['group_size']} "
            f"| {ours['us']:.1f} | {ours['copy_share']:.0%} | {ours['tflops']:.0f} "
            f"| {plain} | {against(row)} |"
        )
    return "\n".join(lines + closing(result["cases"]))


def experts(result: Row) -> str:
    lines = [heading(result), ""]
    lines += ["| layer | tokens | experts used | vqp | of copy | TFLOP/s | best peer | peer / vqp |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for row in result["cases"]:
        ours = row["results"].get(OURS)
        if ours is None:
            continue
        lines.append(
            f"| {row['model']} | {row['m']} | {row['experts_used']} of {row['experts']} | {ours['us']:.1f} "
            f"| {ours['copy_share']:.0%} | {ours['tflops']:.0f} | {against(row)} |"
        )
    return "\n".join(lines + closing(result["cases"]))


def plans(result: Row) -> str:
    lines = [heading(result), "", "| case | chosen (tokens x splits) | us | best | us | chosen / best |"]
    lines += ["|---|---|---|---|---|---|"]
    for row in result["cases"]:
        chosen, best = row["results"].get(row.get("chosen")), row["results"].get(row.get("best"))
        if chosen and best:
            lines.append(
                f"| {row['case']} | {row['chosen']} | {chosen['us']:.1f} | {row['best']} | {best['us']:.1f} "
                f"| {chosen['us'] / best['us']:.2f} |"
            )
    return "\n".join(lines)


SECTIONS = {"experts": experts, "plans": plans, "linear": linear}


def section_of(result: Row) -> str:
    """The table that the result belongs to."""
    fields = {field for row in result["cases"] for field in row}
    return "experts" if "experts_used" in fields else "plans" if "chosen" in fields else "linear"


def joined(results: list[Row]) -> dict[str, Row]:
    """One result per section: the cases of files of one section, in their order, under the first file's heading."""
    found: dict[str, Row] = {}
    for result in results:
        first = found.setdefault(section_of(result), {**result, "cases": []})
        first["cases"] = first["cases"] + result["cases"]
    return found


def write_between(document: str, section: str, text: str) -> str:
    """``document`` with ``text`` between the marker lines of ``section``. Raises ValueError without them."""
    begin, end = f"<!-- gpu {section}: begin -->", f"<!-- gpu {section}: end -->"
    head, found, rest = document.partition(begin)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"no lines {begin} and {end}")
    return f"{head}{begin}\n{text}\n{end}{tail}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--write", type=Path, help="into this document, between its markers")
    arguments = parser.parse_args()
    results = [json.loads(file.read_text()) for file in arguments.files]
    for section, result in joined([result for result in results if "quantization" not in result]).items():
        text = SECTIONS[section](result)
        if arguments.write:
            arguments.write.write_text(write_between(arguments.write.read_text(), section, text))
        else:
            print(f"## {section}\n\n{text}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
