"""``vllm-quant eval``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from vllm_quant_plugin.console import Verbose, progress_bar
from vllm_quant_plugin.errors import OutputError, UsageError
from vllm_quant_plugin.evaluate.options import EngineOptions, TaskOptions, TextOptions
from vllm_quant_plugin.evaluate.report import EvalReport, require_quality
from vllm_quant_plugin.writing import replace_text, writing


def evaluate(
    model: Annotated[str, typer.Argument(help="Model folder or Hub id.")],
    text: TextOptions,
    engine: EngineOptions,
    lm_eval: TaskOptions,
    reference: Annotated[str | None, typer.Option(help="The original model: adds KL divergence.")] = None,
    max_kl: Annotated[
        float | None, typer.Option(help="Exit with code 9 when a text's mean KL in nats per token is above this.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write the report as a page.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
    verbose: Verbose = False,
) -> None:
    """Perplexity and KL divergence of a checkpoint as vLLM runs it."""
    if html is not None and (html.is_dir() or not os.access(html.absolute().parent, os.W_OK)):
        raise OutputError(f"--html {html}: cannot be written", "give a file in a folder that exists")
    if max_kl is not None and reference is None:
        raise UsageError("--max-kl needs something to compare with", "give --reference")
    if lm_eval.tasks is not None:
        from vllm_quant_plugin.evaluate.harness import run_tasks

        scores = run_tasks(model, lm_eval.names, limit=lm_eval.limit, include=lm_eval.task_folder, **engine.arguments())
        print(json.dumps({"model": model, "tasks": scores}, indent=2) if as_json else task_summary(model, scores))
        return
    from vllm_quant_plugin.evaluate.api import evaluate_model

    with progress_bar("evaluate", enabled=not as_json) as progress:
        report = evaluate_model(model, reference=reference, progress=progress, **text.arguments(), **engine.arguments())
    print(json.dumps(report.to_json(), indent=2) if as_json else summary(report), flush=True)
    if html is not None:
        from vllm_quant_plugin.evaluate.html import html_report

        with writing(html, "the figures are above"):
            replace_text(html, html_report(report, Path(model).name))
    require_quality(report, max_kl)


def task_summary(model: str, scores: dict[str, dict[str, float]]) -> str:
    """lm-eval's figures, human-readable."""
    lines = [model]
    for task, metrics in scores.items():
        shown = ", ".join(f"{name.partition(',')[0]} {value:.4f}" for name, value in metrics.items())
        lines.append(f"  {task}: {shown}")
    return "\n".join(lines)


def summary(report: EvalReport) -> str:
    """The figures as a human-readable table."""
    lines = [f"{report.model} ({report.dtype}), {report.seconds:.0f} s"]
    for text in report.texts:
        line = f"  {text.text}: perplexity {text.perplexity:.3f}"
        if text.reference_perplexity is not None:
            line += f" (reference {text.reference_perplexity:.3f})"
        lines.append(f"{line}, {text.windows} windows of {text.window_len}")
        if text.kl is not None:
            kl = text.kl
            lines.append(
                f"    KL per token, nats: mean {kl.mean:.5f}, median {kl.median:.5f}, p95 {kl.p95:.5f},"
                f" p99.9 {kl.p999:.4f}; top-1 agreement {kl.top1_agreement:.1%}"
            )
        if text.noise is not None:
            lines.append(f"    noise floor ({report.noise}): mean {text.noise.mean:.6f}")
    if report.kl_method == "top-k":
        lines.append("  KL over the reference's top 512 tokens with the rest as one: a lower bound")
    if report.layers:
        worst = max(report.layers, key=lambda row: row.error)
        lines.append(
            f"  hidden states: error {report.layers[-1].error:.2%} after the last layer, most after {worst.layer}"
            f" ({worst.error:.2%})"
        )
    lines += [f"  note: {note}" for note in report.notes]
    return "\n".join(lines)
