"""``plan --html FILE``: a self-contained report: no scripts, no fonts, nothing loaded. No torch."""

from __future__ import annotations

from html import escape
from pathlib import Path

from vllm_quant_plugin.errors import OutputError
from vllm_quant_serve.plan.output.render import between, command_line, label_of, memory_parts, size, speed
from vllm_quant_serve.plan.types import Plan

_COLORS = {"weights": "#3b82c4", "overhead": "#d9a13b", "KV cache": "#4c9f70", "unused": "#d5d8dc"}
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c2430;background:#fff}
h1{font-size:1.4rem}table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.3rem .8rem .3rem 0;
border-bottom:1px solid #e3e6ea;vertical-align:top}td.n{text-align:right;font-variant-numeric:tabular-nums}
.bar{display:flex;height:2rem;border-radius:4px;overflow:hidden;margin:1rem 0 .4rem}.bar div{min-width:1px}
.key span{display:inline-block;width:.8rem;height:.8rem;border-radius:2px;margin:0 .4rem 0 1rem}
.no{color:#a33}.yes{color:#2c7a4b}pre{background:#f4f6f8;padding:.8rem;overflow-x:auto;border-radius:4px}
@media(prefers-color-scheme:dark){body{background:#14181d;color:#e4e8ee}td,th{border-color:#303740}pre{background:#1e242b}}
"""


def page(plan: Plan, lines: list[str]) -> str:
    """The report; ``lines`` explain the figures."""
    title = escape(f"Plan for {plan.model}")
    parts = memory_parts(plan)
    bar = "".join(
        f'<div style="flex:{max(nbytes, 1)};background:{_COLORS[name]}" title="{name}: {size(nbytes)}"></div>'
        for name, nbytes in parts
    )
    key = "".join(f'<span style="background:{_COLORS[name]}"></span>{name} {size(nbytes)}' for name, nbytes in parts)
    facts = {
        "Model": f"{plan.architecture}, {plan.quantization}",
        "Placement": f"{label_of(plan)} on {'' if plan.stage_layers else f'{plan.device_count} x '}{plan.device}",
        "Weights per rank": size(plan.weight_bytes_per_rank),
        "Overhead per rank": between(plan.overhead_bytes),
        "KV cache per rank": between(plan.kv_bytes),
        "KV tokens": between(plan.kv_tokens, "tokens"),
        "Longest request": f"{plan.max_model_len:,} tokens, {plan.max_concurrency:g} such at once",
    }
    if plan.prediction is not None:
        facts["Estimated speed"] = speed(plan.prediction)
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in facts.items())
    placements = "".join(
        f'<tr><td class="{"yes" if one.feasible else "no"}">{"fits" if one.feasible else "no"}</td>'
        f"<td>{escape(label_of(one))}{escape(f' on {one.device}' if one.device else '')}</td>"
        f'<td class="n">{size(one.weight_bytes_per_rank) if one.weight_bytes_per_rank is not None else ""}</td>'
        f'<td class="n">{f"{one.kv_tokens:,}" if one.kv_tokens is not None else ""}</td>'
        f"<td>{'' if one.feasible else escape(one.reason)}</td></tr>"
        for one in plan.candidates
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in plan.notes)
    command = escape(command_line(plan))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body><h1>{title}</h1>'
        f'<div class="bar" role="img" aria-label="memory of one device">{bar}</div>'
        f'<p class="key">{size(plan.memory_total)} per device:{key}</p><table>{rows}</table>'
        f"<h2>Placements</h2><table><tr><th></th><th>placement</th><th>weights per rank</th><th>KV tokens</th>"
        f"<th>why</th></tr>{placements}</table>"
        f"<h2>Command</h2><pre>{command}</pre>"
        f"{f'<h2>Notes</h2><ul>{notes}</ul>' if notes else ''}"
        f"<h2>How the figures were computed</h2><pre>{escape(chr(10).join(lines))}</pre></body></html>\n"
    )


def write_page(plan: Plan, lines: list[str], path: Path) -> None:
    """Write the report, complete or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(page(plan, lines), "utf-8")
        part.replace(path)
    except OSError as err:
        raise OutputError(f"{path}: {err.strerror or err}", "choose a file that can be written") from None
