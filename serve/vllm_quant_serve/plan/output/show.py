"""What ``vllm-quant plan`` prints: tables or JSON. rich is imported for tables only."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from vllm_quant_serve.plan.api import plan_in_context
from vllm_quant_serve.plan.request import PlanRequest


def show_plan(request: PlanRequest, *, as_json: bool, explained: bool, html: str | None) -> None:
    """Plan and print; with ``html`` also write a report there."""
    context, plan = plan_in_context(request)
    lines: list[str] = []
    if explained or html is not None:
        from vllm_quant_serve.plan.output.explain import explain

        lines = explain(context, plan)
    if html is not None:
        from vllm_quant_serve.plan.output.html import write_page

        write_page(plan, lines, Path(html))
    if as_json:
        document = plan.to_dict()
        print(json.dumps({**document, "explanation": lines} if explained else document, indent=2))
        return
    from vllm_quant_serve.plan.output.render import print_lines, print_plan

    print_plan(plan)
    if explained:
        print_lines(["", *lines])
    if html is not None:
        print_lines(["", f"report written to {html}"])


def show_comparison(request: PlanRequest, as_json: bool, html: str | None = None) -> None:
    """``--compare``; with ``html`` also write a page there."""
    from vllm_quant_serve.plan.search.compare import compare

    rows = compare(request)
    if html is not None:
        from vllm_quant_serve.plan.devices.resolve import resolve_pools
        from vllm_quant_serve.plan.output.compare_html import write_comparison

        (pool,) = resolve_pools(request)
        write_comparison(request.model, rows, Path(html), devices=f"{pool.count} x {pool.gpu.name}")
    if as_json:
        print(json.dumps({"model": request.model, "methods": [row.to_dict() for row in rows]}, indent=2))
        return
    from vllm_quant_serve.plan.output.render import print_comparison, print_lines

    print_comparison(rows)
    if html is not None:
        print_lines(["", f"report written to {html}"])


def show_accuracy(as_json: bool) -> None:
    """``--accuracy``."""
    from vllm_quant_serve.plan.memory.ledger import accuracy, ledger_path

    found = accuracy()
    if as_json:
        print(json.dumps({"ledger": str(ledger_path()), "figures": [asdict(one) for one in found]}, indent=2))
        return
    from vllm_quant_serve.plan.output.render import print_lines

    if not found:
        print_lines([f"no launch was recorded yet in {ledger_path()}"])
    for one in found:
        print_lines([
            f"{one.figure}: {one.launches} launches, mean absolute error {one.mean:.2%}, p95 {one.p95:.2%}, "
            f"worst {one.worst:.2%}"
        ])  # fmt: skip
