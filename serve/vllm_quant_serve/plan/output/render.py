"""A plan as a table. rich is imported here only, and only when a table is printed."""

from __future__ import annotations

import re
import shlex
import textwrap
from typing import TYPE_CHECKING

from vllm_quant_plugin.sizes import format_size as size
from vllm_quant_serve.plan.types import Candidate, Interval, Plan, Prediction

if TYPE_CHECKING:
    from rich.console import RenderableType

    from vllm_quant_serve.plan.search.compare import Row

BAR = 56
MOST_REFUSALS = 12
_PARTS = (("weights", "cyan"), ("overhead", "yellow"), ("KV cache", "green"), ("unused", "bright_black"))


def between(interval: Interval, show: str = "bytes") -> str:
    """A figure with its interval, when it has one."""
    text = size if show == "bytes" else (lambda n: f"{n:,}")
    if interval.low == interval.high:
        return text(interval.value)
    return f"{text(interval.value)} ({text(interval.low)} to {text(interval.high)})"


def memory_parts(plan: Plan) -> list[tuple[str, int]]:
    """Weights, overhead, KV cache and the rest of one device, in bytes."""
    used = plan.weight_bytes_per_rank + plan.overhead_bytes.value + plan.kv_bytes.value
    return [
        ("weights", plan.weight_bytes_per_rank),
        ("overhead", plan.overhead_bytes.value),
        ("KV cache", plan.kv_bytes.value),
        ("unused", max(plan.memory_total - used, 0)),
    ]


def bar_widths(parts: list[tuple[str, int]], width: int = BAR) -> list[int]:
    """Cells per part, adding up to ``width``: largest remainders win."""
    total = sum(n for _, n in parts) or 1
    exact = [n * width / total for _, n in parts]
    cells = [int(x) for x in exact]
    order = sorted(range(len(parts)), key=lambda i: exact[i] - cells[i], reverse=True)
    for i in order[: width - sum(cells)]:
        cells[i] += 1
    return cells


def label_of(one: Plan | Candidate) -> str:
    """``TP 4 x PP 2 x DP 2, experts distributed``."""
    text = f"TP {one.tensor_parallel_size}"
    text += f" x PP {one.pipeline_parallel_size}" if one.pipeline_parallel_size > 1 else ""
    text += f" x DP {one.data_parallel_size}" if one.data_parallel_size > 1 else ""
    return text + (", experts distributed" if one.expert_parallel else "")


def speed(prediction: Prediction) -> str:
    """Roofline estimates in one line."""
    text = (
        f"{prediction.ttft * 1e3:,.0f} ms to the first token of {prediction.prompt_tokens:,}, "
        f"{prediction.tpot * 1e3:.1f} ms per token, {prediction.tokens_per_second:,.0f} tokens/s with "
        f"{prediction.batch:,} at once"
    )
    if prediction.cost_per_million is not None:
        text += f", {prediction.cost_per_million:.3g} per million tokens"
    return text + " (roofline)"


def _bar(plan: Plan) -> RenderableType:
    from rich.text import Text

    parts = memory_parts(plan)
    text = Text()
    for (_, color), cells in zip(_PARTS, bar_widths(parts), strict=True):
        text.append(("░" if color == "bright_black" else "█") * cells, style=color)
    text.append(f"  {size(plan.memory_total)} per device\n")
    for (name, color), (_, nbytes) in zip(_PARTS, parts, strict=True):
        text.append("■ ", style=color)
        text.append(f"{name} {size(nbytes)} ")
    text.rstrip()
    return text


def _facts(plan: Plan) -> RenderableType:
    from rich.table import Table

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column()
    placement = label_of(plan)
    ranks = plan.tensor_parallel_size * plan.pipeline_parallel_size * plan.data_parallel_size
    unequal = bool(plan.stage_layers)
    on = plan.device if unequal else f"{ranks} of {plan.device_count} x {plan.device}"
    if unequal:
        placement += f", {' + '.join(map(str, plan.stage_layers))} layers"
    rows = [
        ("model", f"{plan.model}  {plan.architecture}, {plan.quantization}"),
        ("placement", f"{placement}  ({on})"),
        ("weights per rank", size(plan.weight_bytes_per_rank)),
        ("overhead per rank", between(plan.overhead_bytes)),
        ("KV cache per rank", between(plan.kv_bytes)),
        ("KV tokens", between(plan.kv_tokens, "tokens")),
        ("bytes per token", f"{plan.kv_bytes_per_token:,} per rank, KV dtype {plan.kv_cache_dtype}"),
        ("longest request", f"{plan.max_model_len:,} tokens, {plan.max_concurrency:.2f} such at once"),
    ]
    if plan.prediction is not None:
        rows.append(("estimated speed", speed(plan.prediction)))
    for name, value in rows:
        table.add_row(name, value)
    return table


def _candidates(candidates: tuple[Candidate, ...], chosen: str) -> RenderableType:
    """The placements that fit; the one that was chosen is marked."""
    from rich.table import Table

    table = Table(title="placements that fit", title_justify="left", box=None, padding=(0, 2, 0, 0))
    numbers = ("weights/rank", "KV tokens", "ms/token", "tokens/s")
    several = any(one.device for one in candidates)
    for name in ("", "placement", *(("devices",) if several else ()), *numbers, ""):
        table.add_column(name, justify="right" if name in numbers else "left", no_wrap=name in numbers)
    for one in (one for one in candidates if one.feasible):
        row = [
            "[green]>[/]" if f"{one.device}{label_of(one)}" == chosen else "",
            label_of(one),
            *((one.device,) if several else ()),
            size(one.weight_bytes_per_rank) if one.weight_bytes_per_rank is not None else "",
            f"{one.kv_tokens:,}" if one.kv_tokens is not None else "",
            f"{one.tpot * 1e3:.1f}" if one.tpot is not None else "",
            f"{one.tokens_per_second:,.0f}" if one.tokens_per_second is not None else "",
            "tight" if one.reason.endswith("tight") else "see notes" if one.change else "",
        ]
        table.add_row(*row)
    return table


def refused_lines(candidates: tuple[Candidate, ...]) -> list[str]:
    """One line per reason, with all placements it holds for: ``TP 3, 5 to 7: 64 attention heads do not divide``."""
    groups: dict[str, list[Candidate]] = {}
    for one in candidates:
        if not one.feasible:
            text = one.reason.removeprefix(f"{label_of(one)}: ")
            general = re.sub(r" (do|does) not divide by \d+.*$", r" \1 not divide", text)
            where = f"{one.device}, " if one.device else ""
            groups.setdefault(f"{where}|{general}", []).append(one)
    lines = []
    for key, members in groups.items():
        where, _, text = key.partition("|")
        if len(members) == 1:
            text = members[0].reason.removeprefix(f"{label_of(members[0])}: ")
        lines.append(f"{where}{_labels(members)}: {text}")
    return lines


def _labels(members: list[Candidate]) -> str:
    """``TP 3, 5 to 7; TP 3 x PP 2``."""
    plain = {one.tensor_parallel_size for one in members if label_of(one) == f"TP {one.tensor_parallel_size}"}
    runs: list[list[int]] = []
    for n in sorted(plain):
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    words = [f"{a}" if a == b else f"{a}, {b}" if b == a + 1 else f"{a} to {b}" for a, b in runs]
    others = [label_of(one) for one in members if label_of(one) != f"TP {one.tensor_parallel_size}"]
    return "; ".join([*([f"TP {', '.join(words)}"] if words else []), *dict.fromkeys(others)])


def command_line(plan: Plan) -> str:
    """The launch as one would type it."""
    settings = [f"{name}={value}" for name, value in plan.env.items()]
    return shlex.join([*settings, "vllm", "serve", plan.model, *plan.serve_args()])


def print_plan(plan: Plan) -> None:
    """Print a plan to stdout."""
    from rich.console import Console

    console = Console(highlight=False)
    console.print(_facts(plan))
    console.print()
    console.print(_bar(plan))
    console.print()
    several = any(one.device for one in plan.candidates)
    console.print(_candidates(plan.candidates, f"{plan.device if several else ''}{label_of(plan)}"))
    refused = refused_lines(plan.candidates)
    if refused:
        console.print("\nplacements that do not:")
    for line in refused[:MOST_REFUSALS]:
        console.print(textwrap.fill(line, console.width, initial_indent="  ", subsequent_indent="    "), markup=False)
    if refused[MOST_REFUSALS:]:
        console.print(f"  and {len(refused) - MOST_REFUSALS} more; --json has them all")
    if plan.notes:
        console.print()
    for note in plan.notes:
        console.print(f"note: {note}", markup=False)
    console.print()
    console.print(command_line(plan), markup=False, soft_wrap=True)


def print_lines(lines: list[str]) -> None:
    """Print plain lines to stdout, wrapped to the terminal."""
    from rich.console import Console

    console = Console(highlight=False)
    for line in lines:
        console.print(line, markup=False)


def print_comparison(rows: list[Row]) -> None:
    """Print ``plan --compare``."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("method", "", "devices", "weights", "KV tokens", "ms/token", "tokens/s", "expected loss"):
        left = name in ("method", "", "expected loss")
        table.add_column(name, justify="left" if left else "right", no_wrap=not left)
    for row in rows:
        table.add_row(
            row.method,
            "[green]fits[/]" if row.fits else "[red]no[/]",
            str(row.devices) if row.devices is not None else "",
            size(row.weight_bytes_per_rank) if row.weight_bytes_per_rank is not None else "",
            f"{row.kv_tokens:,}" if row.kv_tokens is not None else "",
            f"{row.tpot * 1e3:.1f}" if row.tpot is not None else "",
            f"{row.tokens_per_second:,.0f}" if row.tokens_per_second is not None else "",
            row.loss,
        )
    console = Console(highlight=False)
    console.print(table)
    console.print()
    for source in dict.fromkeys(row.source for row in rows if row.source):
        methods = ", ".join(row.method for row in rows if row.source == source)
        console.print(f"expected loss of {methods}: {source}", markup=False)
    for row in rows:
        if not row.fits:
            console.print(f"{row.method}: {row.reason}", markup=False)
    if any(row.tpot is not None or row.tokens_per_second is not None for row in rows):
        console.print("Speeds are roofline estimates.")
