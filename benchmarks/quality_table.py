"""The tables of docs/quality.md and the claims that they must bear out, from what ``quality.py`` measured."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- written by benchmarks/quality.py -->", "<!-- end of what is written -->"
BITS, GROUPS, METHODS = (2, 3, 4, 8), (32, 64, 128), ("rtn", "gptq", "awq")
# Ours may be worse than the library's own result by this much.
NO_WORSE = 1.02
Rows = dict[str, Any]
Claim = tuple[bool, str]


def mean_kl(row: dict[str, Any]) -> float:
    """Over both texts, which have equally many tokens."""
    return sum(text["kl"] for text in row["texts"]) / len(row["texts"])


def _kl(rows: Rows, name: str) -> float | None:
    return mean_kl(rows[name]) if name in rows else None


def _cells(row: dict[str, Any]) -> str:
    cells = [f"{row['bits_per_weight']:.2f}"]
    for text in row["texts"]:
        cells += [f"{text['perplexity']:.3f}", f"{text['kl']:.5f}", f"{text['top1']:.1%}"]
    return " | ".join(cells)


_HEAD = (
    "| {} | bits per weight | perplexity, code | KL, code | same top token | perplexity, prose | KL, prose"
    " | same top token |\n|---|---|---|---|---|---|---|---|"
)


def _section(title: str, first: str, rows: Rows, names: list[str]) -> list[str]:
    found = [f"| {name} | {_cells(rows[name])} |" for name in names if name in rows]
    return [f"### {title}", "", _HEAD.format(first), *found, ""] if found else []


def _grid(rows: Rows) -> list[str]:
    lines = ["### Mean KL of both texts by bits and group size", "", "| bits | group | RTN | GPTQ | AWQ |"]
    lines.append("|---|---|---|---|---|")
    for bits in BITS:
        for group in reversed(GROUPS):
            values = [_kl(rows, f"{method}-{bits}bit-{group}g") for method in METHODS]
            shown = " | ".join("" if v is None else f"{v:.5f}" for v in values)
            lines.append(f"| {bits} | {group} | {shown} |")
    return [*lines, ""]


def _library_rows(rows: Rows) -> list[str]:
    lines = ["### The libraries' own results for the same recipe", ""]
    lines += ["| recipe | library | its KL | ours | ours / its |", "|---|---|---|---|---|"]
    for name in sorted(rows):
        recipe, _, library = name.partition("/")
        if library and recipe in rows:
            theirs, ours = mean_kl(rows[name]), mean_kl(rows[recipe])
            lines.append(f"| {recipe} | {library} | {theirs:.5f} | {ours:.5f} | {ours / theirs:.3f} |")
    return [*lines, ""]


def _mixed_rows(rows: Rows) -> list[str]:
    lines = ["### `--target-bpw 3.5`", ""]
    lines += ["| method | bits per weight | KL | best uniform that is no larger | its KL on unseen text | kept |"]
    lines += ["|---|---|---|---|---|---|"]
    for name, row in sorted(rows.items()):
        if "mixed" in row:
            found = row["mixed"]
            checked = found["checked_kl"]
            lines.append(
                f"| {name} | {row['bits_per_weight']:.2f} | {mean_kl(row):.5f} | {found['uniform']}"
                f" | {checked.get('uniform', float('nan')):.5f} (mixture: {checked.get('mixed', float('nan')):.5f})"
                f" | {found['kept']} |"
            )
    return [*lines, ""]


def table(results: dict[str, Any]) -> str:
    """Markdown of everything that was measured."""
    rows: Rows = results["rows"]
    own = [name for name in rows if "/" not in name and "outliers" not in name]
    noise = {
        known: max(found["noise"].values()) for known, found in results["reference"].items()
    }  # fmt: skip
    lines = [f"Noise floor (float32 against bfloat16, same weights): KL {noise.get('bundled', float('nan')):.6f}.", ""]
    lines += _grid(rows)
    lines += _section("Weights of 4 bits and fewer, and 8", "recipe", rows, sorted(n for n in own if "bit-" in n))
    lines += _section("FP8 and INT8", "recipe", rows, sorted(n for n in own if n.startswith(("fp8", "int8"))))
    lines += _library_rows(rows)
    lines += _mixed_rows(rows)
    loud = sorted(name for name in rows if "outliers" in name)
    lines += _section("The model with loud channels, against itself unquantized", "recipe", rows, loud)
    lines += ["### Claims", "", "| claim | holds |", "|---|---|"]
    lines += [f"| {what} | {'yes' if ok else 'no'} |" for ok, what in check_claims(results)]
    return "\n".join(lines)


def write_table(results: dict[str, Any], document: Path) -> None:
    """Replace what stands between the marks of ``document``."""
    text = document.read_text("utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    document.write_text(f"{before}{BEGIN}\n\n{table(results)}\n\n{END}{after}", "utf-8")


def _less(rows: Rows, smaller: str, larger: str, factor: float = 1.0) -> Iterator[Claim]:
    a, b = _kl(rows, smaller), _kl(rows, larger)
    if a is not None and b is not None:
        most = "" if factor == 1 else f" {factor:g} times"
        yield a < factor * b, f"{smaller} ({a:.5f}) is below{most} {larger} ({b:.5f})"


def check_claims(results: dict[str, Any]) -> list[Claim]:
    """(holds, what) for every claim whose rows were measured."""
    rows: Rows = results["rows"]
    found: list[Claim] = []
    for bits in (3, 4):
        for group in GROUPS:
            for method in ("gptq", "awq"):
                found += _less(rows, f"{method}-{bits}bit-{group}g", f"rtn-{bits}bit-{group}g")
    for method in METHODS:
        for group in GROUPS:
            for few, many in itertools.pairwise(BITS):
                found += _less(rows, f"{method}-{many}bit-{group}g", f"{method}-{few}bit-{group}g")
        for bits in (2, 3, 4):
            for fine, coarse in itertools.pairwise(GROUPS):
                found += _less(rows, f"{method}-{bits}bit-{fine}g", f"{method}-{bits}bit-{coarse}g")
    for name in sorted(rows):
        recipe, _, library = name.partition("/")
        if library and recipe in rows:
            found += _less(rows, recipe, name, NO_WORSE)
    found += _outlier_claims(rows)
    for name, row in sorted(rows.items()):
        if "mixed" in row:
            method = name.partition("-")[0]
            for group in GROUPS:
                uniform = rows.get(f"{method}-3bit-{group}g")
                if uniform and uniform["bits_per_weight"] <= row["bits_per_weight"] + 1e-9:
                    found += _less(rows, name, f"{method}-3bit-{group}g")
    return found


def _outlier_claims(rows: Rows) -> Iterator[Claim]:
    plain, smooth = _kl(rows, "int8-W8A8 (outliers)"), _kl(rows, "int8-W8A8-smooth (outliers)")
    if plain is not None and smooth is not None:
        share = (plain - smooth) / plain
        yield share >= 0.8, f"SmoothQuant recovers {share:.1%} of the KL that plain W8A8 loses with loud channels"
    yield from _less(rows, "awq-3bit-128g (outliers)", "rtn-3bit-128g (outliers)", 0.5)
