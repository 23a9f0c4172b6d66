"""The tables of docs/results/quality.md and the claims about them, from the results of ``quality.py``."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- written by benchmarks/quality.py -->", "<!-- end of what is written -->"
BITS, GROUPS, METHODS = (2, 3, 4, 8), (32, 64, 128), ("rtn", "gptq", "awq")
# The largest accepted ratio of our KL to the library's.
NO_WORSE = 1.02
Rows = dict[str, Any]
Claim = tuple[bool, str]


def mean_kl(row: dict[str, Any]) -> float:
    """Over both texts, which have equally many tokens."""
    return sum(text["kl"] for text in row["texts"]) / len(row["texts"])


def _shown(kl: float) -> str:
    return f"{kl:.5f}" if kl >= 1e-3 else f"{kl:.6f}"


def _kl(rows: Rows, name: str) -> float | None:
    return mean_kl(rows[name]) if name in rows else None


def _cells(row: dict[str, Any]) -> str:
    cells = [f"{row['bits_per_weight']:.2f}"]
    for text in row["texts"]:
        cells += [f"{text['perplexity']:.3f}", f"{text['kl']:.5f}", f"{text['top1']:.1%}"]
    return " | ".join(cells)


_HEAD = (
    "| {} | bits per weight | perplexity, code | KL, code | top-1 agreement | perplexity, prose | KL, prose"
    " | top-1 agreement |\n|---|---|---|---|---|---|---|---|"
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
            shown = " | ".join("" if v is None else _shown(v) for v in values)
            lines.append(f"| {bits} | {group} | {shown} |")
    return [*lines, ""]


def _library_rows(rows: Rows) -> list[str]:
    lines = ["### The libraries' own results for the same recipe", ""]
    lines += ["| recipe | library | its KL | ours | ours / its |", "|---|---|---|---|---|"]
    for name in sorted(rows):
        recipe, _, library = name.partition("/")
        if library and recipe in rows:
            theirs, ours = mean_kl(rows[name]), mean_kl(rows[recipe])
            lines.append(f"| {recipe} | {library} | {_shown(theirs)} | {_shown(ours)} | {ours / theirs:.3f} |")
    return [*lines, ""]


def _mixed_rows(rows: Rows) -> list[str]:
    lines = ["### `--target-bpw 3.5`", ""]
    lines += [
        "| method | bits per weight | KL | uniform of equal size, interpolated | best uniform that is no larger"
        " | mixture and it on unseen calibration text | kept |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in sorted(rows.items()):
        if "mixed" in row:
            found = row["mixed"]
            checked = found["checked_kl"]
            between = uniform_at(rows, name.partition("-")[0], row["bits_per_weight"])
            lines.append(
                f"| {name} | {row['bits_per_weight']:.2f} | {mean_kl(row):.5f}"
                f" | {'' if between is None else f'{between:.5f}'} | {found['uniform']}"
                f" | {checked.get('mixed', math.nan):.5f}, {checked.get('uniform', math.nan):.5f} | {found['kept']} |"
            )
    return [*lines, ""]


def table(results: dict[str, Any], wanted: Iterable[str] = ()) -> str:
    """Markdown of all results; ``wanted`` as in ``check_claims``."""
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
    outliers = sorted(name for name in rows if "outliers" in name and "/" not in name)
    lines += _section("The model with outlier channels, against itself unquantized", "recipe", rows, outliers)
    lines += ["### Claims", "", "| claim | holds |", "|---|---|"]
    lines += [f"| {what} | {'yes' if ok else 'no'} |" for ok, what in check_claims(results, wanted)]
    return "\n".join(lines)


def write_table(results: dict[str, Any], document: Path, wanted: Iterable[str] = ()) -> None:
    """Replace the text between the marks of ``document``."""
    text = document.read_text("utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    document.write_text(f"{before}{BEGIN}\n\n{table(results, wanted)}\n\n{END}{after}", "utf-8")


def _less(rows: Rows, smaller: str, larger: str, factor: float = 1.0) -> Iterator[Claim]:
    a, b = _kl(rows, smaller), _kl(rows, larger)
    if a is not None and b is not None:
        most = "" if factor == 1 else f" {factor:g} times"
        yield a < factor * b, f"{smaller} ({_shown(a)}) is below{most} {larger} ({_shown(b)})"


def check_claims(results: dict[str, Any], wanted: Iterable[str] = ()) -> list[Claim]:
    """(holds, what) for every claim whose rows were measured.

    Args:
        wanted: rows that must exist; a missing one counts as a failed claim.
    """
    rows: Rows = results["rows"]
    found: list[Claim] = [(False, f"{name} has not been measured") for name in wanted if name not in rows]
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
            found += _mixed_claims(rows, name)
    return found


def uniform_at(rows: Rows, method: str, bits_per_weight: float) -> float | None:
    """KL of uniform bits at exactly this size, interpolated linearly in log KL between the two nearest."""
    sized = sorted(
        (row["bits_per_weight"], mean_kl(row))
        for bits in BITS for group in GROUPS if (row := rows.get(f"{method}-{bits}bit-{group}g"))
    )  # fmt: skip
    below = [pair for pair in sized if pair[0] <= bits_per_weight + 1e-9]
    above = [pair for pair in sized if pair[0] > bits_per_weight + 1e-9]
    if not below or not above:
        return None
    least = min(below, key=lambda pair: pair[1])
    share = (bits_per_weight - least[0]) / (above[0][0] - least[0])
    return float(math.exp((1 - share) * math.log(least[1]) + share * math.log(above[0][1])))


def _mixed_claims(rows: Rows, name: str) -> Iterator[Claim]:
    row, method = rows[name], name.partition("-")[0]
    for bits, group in itertools.product((2, 3), GROUPS):
        uniform = rows.get(f"{method}-{bits}bit-{group}g")
        if uniform and uniform["bits_per_weight"] <= row["bits_per_weight"] + 1e-9:
            yield from _less(rows, name, f"{method}-{bits}bit-{group}g")
    between = uniform_at(rows, method, row["bits_per_weight"])
    if between is not None:
        kl = mean_kl(row)
        yield kl < between, f"{name} ({kl:.5f}) is below uniform bits of equal size, interpolated ({between:.5f})"
    checked = row["mixed"]["checked_kl"]
    if checked:
        a, b = checked["mixed"], checked["uniform"]
        yield a < b, f"{name} on calibration text unseen by both ({a:.5f}) is below its best uniform ({b:.5f})"


def _outlier_claims(rows: Rows) -> Iterator[Claim]:
    plain, smooth = _kl(rows, "int8-W8A8 (outliers)"), _kl(rows, "int8-W8A8-smooth (outliers)")
    if plain is not None and smooth is not None:
        share = (plain - smooth) / plain
        yield share >= 0.8, f"SmoothQuant recovers {share:.1%} of the KL that plain W8A8 loses with outlier channels"
    yield from _less(rows, "awq-3bit-128g (outliers)", "rtn-3bit-128g (outliers)", 0.5)
