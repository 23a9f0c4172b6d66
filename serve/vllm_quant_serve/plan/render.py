"""A plan as a table for people. rich is imported here only, and only when a table is printed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_quant_serve.plan.types import Candidate, Interval, Plan, Prediction

if TYPE_CHECKING:
    from rich.console import RenderableType

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
    placement = f"TP {plan.tensor_parallel_size}"
    if plan.pipeline_parallel_size > 1:
        placement += f" x PP {plan.pipeline_parallel_size}"
    if plan.data_parallel_size > 1:
        placement += f" x DP {plan.data_parallel_size}"
    if plan.expert_parallel:
        placement += ", experts spread"
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
        label = f"TP {one.tensor_parallel_size}"
        if one.pipeline_parallel_size > 1:
            label += f" x PP {one.pipeline_parallel_size}"
        if one.data_parallel_size > 1:
            label += f" x DP {one.data_parallel_size}"
        if one.expert_parallel:
            label += ", experts spread"
        table.add_row(
            "[green]fits[/]" if one.feasible else "[red]no[/]",
            label,
            size(one.weight_bytes_per_rank) if one.weight_bytes_per_rank is not None else "",
            f"{one.kv_tokens:,}" if one.kv_tokens is not None else "",
            f"{one.tpot * 1e3:.1f}" if one.tpot is not None else "",
            f"{one.tokens_per_second:,.0f}" if one.tokens_per_second is not None else "",
            "" if one.feasible else one.reason,
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
