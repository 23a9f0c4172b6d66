"""``vllm-quant eval``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from vllm_quant_plugin.evaluate.report import EvalReport
from vllm_quant_plugin.quantize.progress import progress_bar


def evaluate(
    model: Annotated[str, typer.Argument(help="Model folder or hub id.")],
    reference: Annotated[str | None, typer.Option(help="The original model: adds KL divergence.")] = None,
    text: Annotated[list[Path] | None, typer.Option(help="Held-out text; may be given several times.")] = None,
    windows: Annotated[int, typer.Option(help="Windows of each text; 0 for all.")] = 64,
    window_len: Annotated[int, typer.Option(help="Tokens per window.")] = 256,
    dtype: Annotated[str, typer.Option(help="vLLM's dtype.")] = "auto",
    quantization: Annotated[str | None, typer.Option(help="vLLM's quantization method, e.g. vqp_awq.")] = None,
    tensor_parallel_size: Annotated[int, typer.Option(help="Ranks.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Perplexity and KL divergence of a checkpoint as vLLM runs it."""
    from vllm_quant_plugin.evaluate.api import evaluate_model

    engine: dict[str, Any] = {"dtype": dtype, "tensor_parallel_size": tensor_parallel_size}
    if quantization:
        engine["quantization"] = quantization
    with progress_bar("evaluate", enabled=not as_json) as progress:
        report = evaluate_model(
            model, reference=reference, texts=text or (), windows=windows or None, window_len=window_len,
            progress=progress, **engine,
        )  # fmt: skip
    print(json.dumps(report.to_json(), indent=2) if as_json else summary(report))


def summary(report: EvalReport) -> str:
    """The figures as a table for people."""
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
                f" p99.9 {kl.p999:.4f}; same likeliest token {kl.top1_agreement:.1%}"
            )
    if report.kl_method == "top-k":
        lines.append("  KL over the reference's top 512 tokens with the rest as one: a lower bound")
    return "\n".join(lines)
