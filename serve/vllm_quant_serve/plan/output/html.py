"""``plan --html FILE``: the plan as a page that stands alone. No torch."""

from __future__ import annotations

from pathlib import Path

from vllm_quant_plugin.pages.charts import stacked, swatch
from vllm_quant_plugin.pages.document import document, made_by, write_text
from vllm_quant_plugin.pages.markup import (
    Column,
    Html,
    Sizes,
    bullets,
    command,
    facts,
    figure,
    folded,
    heading,
    join,
    section,
    table,
    tag,
    tiles,
    without_empty,
)
from vllm_quant_serve.plan.output.render import between, command_line, label_of, memory_parts, refused_lines, size
from vllm_quant_serve.plan.types import Candidate, Interval, Plan

_LOOKS = {"weights": "weights", "overhead": "overhead", "KV cache": "cache", "unused": "unused"}


def short_name(model: str) -> str:
    """The last part of a path or Hub id, for a heading; the whole is shown below it."""
    return model.rstrip("/").rpartition("/")[2] or model


def _devices(plan: Plan) -> str:
    if plan.stage_layers:
        return plan.device
    ranks = plan.tensor_parallel_size * plan.pipeline_parallel_size * plan.data_parallel_size
    if plan.device == "CPU":
        return "a CPU" if ranks == 1 else f"a CPU, {ranks} ranks"
    return (
        f"{ranks} x {plan.device}" if ranks == plan.device_count else f"{ranks} of {plan.device_count} x {plan.device}"
    )


def _chosen(plan: Plan, one: Candidate) -> bool:
    return one.feasible and label_of(one) == label_of(plan) and one.device in ("", plan.device)


def _verdict(plan: Plan) -> tuple[Html, str]:
    """The answer in one line, and its colour."""
    tight = any(_chosen(plan, one) and one.reason.endswith("tight") for one in plan.candidates)
    said = f" {label_of(plan)} on {_devices(plan)}, requests of up to {plan.max_model_len:,} tokens"
    said += f", {plan.max_concurrency:,.4g} of that length at once." if plan.max_concurrency >= 1 else "."
    if tight:
        said += " It fits by less than the uncertainty of the estimate."
    return join(tag("strong", "Fits, but tight." if tight else "Fits."), said), "warn" if tight else "good"


def _range(interval: Interval) -> str:
    exact = interval.low == interval.high
    return "exact" if exact else f"between {interval.low:,} and {interval.high:,}"


def _tiles(plan: Plan) -> Html:
    speed = plan.prediction
    rows = []
    if speed is not None:
        rows += [
            ("Time per token", figure(speed.tpot * 1e3, 1), "ms", f"of each request, {speed.batch:,} at once"),
            ("Throughput", figure(speed.tokens_per_second), "tokens/s", f"all requests, {speed.batch:,} at once"),
            ("Time to first token", figure(speed.ttft * 1e3), "ms", f"prompt of {speed.prompt_tokens:,}, no queue"),
        ]
    rows.append(("KV cache", figure(plan.kv_tokens.value), "tokens", _range(plan.kv_tokens)))
    if speed is None:
        unit, _, name = size(plan.weight_bytes_per_rank).partition(" ")
        rows.append(("Weights", unit, name, "per rank"))
        rows.append(("Longest request", figure(plan.max_model_len), "tokens", "prompt and answer together"))
        rows.append(("Cache holds", f"{plan.max_concurrency:,.4g}", "requests", "of the longest kind"))
    note = tag("p", "Times and throughput are roofline estimates, not measurements.", class_="note")
    return tag("div", join(tiles(rows), note if speed is not None else None))


def _memory(plan: Plan) -> Html:
    parts = memory_parts(plan)
    intervals = {"overhead": plan.overhead_bytes, "KV cache": plan.kv_bytes}
    sizes = Sizes.of([*(nbytes for _, nbytes in parts), plan.overhead_bytes.low])
    rows: list[list[object]] = []
    for name, nbytes in parts:
        known = intervals.get(name)
        shown = f"{sizes.show(known.low)} to {sizes.show(known.high)}" if known and known.low != known.high else ""
        rows.append([join(swatch(_LOOKS[name]), name), sizes.show(nbytes), shown, f"{nbytes / plan.memory_total:.1%}"])
    rows.append(["device", sizes.show(plan.memory_total), "", "100.0%"])
    headings = (sizes.unit, f"range, {sizes.unit}", "share")
    columns = [Column("part"), *(Column(name, number=True) for name in headings)]
    bar = stacked("Memory of one device: " + ", ".join(f"{name} {size(n)}" for name, n in parts),
                  [(f"{name}: {size(nbytes)}", nbytes, _LOOKS[name]) for name, nbytes in parts])  # fmt: skip
    return section(
        "Memory of one device", bar, table(columns, rows, total=True, cards=False, caption="memory of one device")
    )


def _placements(plan: Plan) -> Html:
    """Every placement that fits, the chosen one marked; those that do not, folded."""
    fitting = [one for one in plan.candidates if one.feasible]
    sizes = Sizes.of([one.weight_bytes_per_rank for one in fitting])
    columns = [Column("placement"), Column("devices", prose=True),
               Column(f"weights per rank, {sizes.unit}", number=True), Column("KV tokens", number=True),
               Column("ms per token", number=True), Column("tokens per second", number=True),
               Column("remark")]  # fmt: skip
    chosen = next((i for i, one in enumerate(fitting) if _chosen(plan, one)), None)
    rows: list[list[object]] = []
    for i, one in enumerate(fitting):
        name = join(label_of(one), tag("span", "chosen", class_="tag")) if i == chosen else label_of(one)
        remark = "tight" if one.reason.endswith("tight") else "see notes" if one.change else ""
        rows.append([name, one.device, sizes.show(one.weight_bytes_per_rank), figure(one.kv_tokens),
                     figure(None if one.tpot is None else one.tpot * 1e3, 1), figure(one.tokens_per_second),
                     remark])  # fmt: skip
    shown = table(*without_empty(columns, rows), chosen=chosen, caption="placements that fit")
    parts = [section("Placements that fit", shown)]
    refused = refused_lines(plan.candidates)
    if refused:
        count = sum(not one.feasible for one in plan.candidates)
        parts.append(folded("Placements that do not fit", f"{count}, with the reason", bullets(refused)))
    return join(*parts)


def _details(plan: Plan) -> Html:
    rows: list[tuple[str, object]] = [
        ("Model", plan.model),
        ("Architecture", plan.architecture),
        ("Weights", f"{plan.quantization}, {size(plan.weight_bytes_per_rank)} per rank"),
        ("KV cache", f"{between(plan.kv_bytes)} per rank, {plan.kv_bytes_per_token:,} bytes per token,"
                     f" dtype {plan.kv_cache_dtype}"),
        ("Longest request", f"{plan.max_model_len:,} tokens"),
        ("Sequences at once", f"at most {plan.max_num_seqs:,}"),
        ("Memory utilization", f"{plan.gpu_memory_utilization:g} of {size(plan.memory_total)} per device"),
    ]  # fmt: skip
    if plan.stage_layers:
        rows.append(("Layers per stage", " + ".join(map(str, plan.stage_layers))))
    if plan.prediction is not None and plan.prediction.cost_per_million is not None:
        rows.append(("Price", f"{plan.prediction.cost_per_million:.3g} per million output tokens"))
    if plan.exact is not None:
        rows += [(f"vLLM's own {key.replace('_', ' ')}", figure(value) if isinstance(value, int) else str(value))
                 for key, value in plan.exact.items()]  # fmt: skip
    return section("Settings", facts(rows))


def page(plan: Plan, lines: list[str]) -> str:
    """The report; ``lines`` explain the figures."""
    name = short_name(plan.model)
    said, mood = _verdict(plan)
    parts = [
        heading("Plan for vllm serve", name, f"{plan.architecture}, {plan.quantization}", said, mood),
        _tiles(plan),
        section("Command", command(command_line(plan))),
        _placements(plan),
        _memory(plan),
        section("Notes", bullets(plan.notes)) if plan.notes else None,
        _details(plan),
        folded("How the figures were computed", "", bullets(lines, class_="explained")) if lines else None,
        made_by("vllm-quant plan", "made from config.json and safetensors headers"),
    ]
    return document(f"Plan for {name}", join(*parts))


def write_page(plan: Plan, lines: list[str], path: Path) -> None:
    """Write the report, complete or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    write_text(page(plan, lines), path)
