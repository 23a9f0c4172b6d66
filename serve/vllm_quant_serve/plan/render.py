"""A plan as a table for people. rich is imported here only, and only when a table is printed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_quant_serve.plan.types import Candidate, Interval, Plan, Prediction

if TYPE_CHECKING:
    from rich.console import RenderableType

    from vllm_quant_serve.plan.compare import Row

BAR = 56
_PARTS = (("weights", "cyan"), ("overhead", "yellow"), ("KV cache", "green"), ("free", "bright_black"))


def size(nbytes: int) -> str:
    """Bytes with a unit, binary."""
    value = float(nbytes)
    for unit in ("B", "KiB", "MiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.2f} GiB"


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
        ("free", max(plan.memory_total - used, 0)),
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
    """``TP 4 x PP 2 x DP 2, experts spread``."""
    text = f"TP {one.tensor_parallel_size}"
    text += f" x PP {one.pipeline_parallel_size}" if one.pipeline_parallel_size > 1 else ""
    text += f" x DP {one.data_parallel_size}" if one.data_parallel_size > 1 else ""
    return text + (", experts spread" if one.expert_parallel else "")


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
        text.append(f"{name} {size(nbytes)}  ")
    text.rstrip()
    return text


def _facts(plan: Plan) -> RenderableType:
    from rich.table import Table

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column()
    placement = label_of(plan)
    ranks = plan.tensor_parallel_size * plan.pipeline_parallel_size * plan.data_parallel_size
    rows = [
        ("model", f"{plan.model}  {plan.architecture}, {plan.quantization}"),
        ("placement", f"{placement}  ({ranks} of {plan.device_count} x {plan.device})"),
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


def _candidates(candidates: tuple[Candidate, ...]) -> RenderableType:
    from rich.table import Table

    table = Table(title="placements", title_justify="left", box=None, padding=(0, 2, 0, 0))
    numbers = ("weights/rank", "KV tokens", "ms/token", "tokens/s")
    for name in ("", "placement", *numbers, "why"):
        table.add_column(name, justify="right" if name in numbers else "left")
    for one in candidates:
        table.add_row(
            "[green]fits[/]" if one.feasible else "[red]no[/]",
            label_of(one),
            size(one.weight_bytes_per_rank) if one.weight_bytes_per_rank is not None else "",
            f"{one.kv_tokens:,}" if one.kv_tokens is not None else "",
            f"{one.tpot * 1e3:.1f}" if one.tpot is not None else "",
            f"{one.tokens_per_second:,.0f}" if one.tokens_per_second is not None else "",
            "" if one.feasible and not one.reason.endswith("tight") else one.reason,
        )
    return table


def print_plan(plan: Plan) -> None:
    """Print a plan to stdout."""
    from rich.console import Console

    console = Console(highlight=False)
    console.print(_facts(plan))
    console.print()
    console.print(_bar(plan))
    console.print()
    console.print(_candidates(plan.candidates))
    if plan.notes:
        console.print()
    for note in plan.notes:
        console.print(f"note: {note}", markup=False)
    console.print()
    console.print("vllm serve " + " ".join([plan.model, *plan.serve_args()]), markup=False, soft_wrap=True)


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
    for name in ("method", "", "devices", "weights/rank", "KV tokens", "ms/token", "tokens/s", "expected loss"):
        table.add_column(name, justify="left" if name in ("method", "", "expected loss") else "right")
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
    console.print("Speeds are roofline estimates.")
