"""``vllm-quant quantize``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from vllm_quant_plugin.backends.command import offer_backend
from vllm_quant_plugin.console import progress_bar
from vllm_quant_plugin.errors import QualityError, UsageError, VqpError
from vllm_quant_plugin.evaluate.report import EvalReport, require_quality
from vllm_quant_plugin.quantize.estimate.preflight import summary as plan_summary
from vllm_quant_plugin.quantize.io.report import QuantizeReport
from vllm_quant_plugin.quantize.options import LEVEL_EXAMPLES, default_method, make_recipe


def quantize(
    model: Annotated[str, typer.Argument(help="Model folder, or hub id such as org/name.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to create.")],
    method: Annotated[
        str | None, typer.Option("--method", "-m", help="awq, gptq, fp8, int8 or rtn (what --level is for, else awq).")
    ] = None,
    level: Annotated[str | None, typer.Option(help=f"Preset: {LEVEL_EXAMPLES}.")] = None,
    bits: Annotated[int | None, typer.Option(help="Bits per weight.")] = None,
    group_size: Annotated[int | None, typer.Option(help="Input features per scale; -1 is one per channel.")] = None,
    act_order: Annotated[
        bool | None, typer.Option("--act-order/--no-act-order", help="GPTQ: quantize columns by importance.")
    ] = None,
    symmetric: Annotated[bool | None, typer.Option("--sym/--asym", help="Without or with zero points.")] = None,
    calibration: Annotated[
        str | None,
        typer.Option(help="Text, JSON, JSONL or Parquet file, or hub data set org/name:split; default: ours."),
    ] = None,
    calibration_samples: Annotated[int | None, typer.Option(help="Calibration windows (128).")] = None,
    seq_len: Annotated[int | None, typer.Option(help="Tokens per window (512).")] = None,
    truncate: Annotated[
        bool, typer.Option("--truncate", help="A window from each document's beginning, not from all laid end to end.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Choice of calibration windows.")] = 0,
    backend: Annotated[str | None, typer.Option(help="builtin, gptqmodel, autoawq or llmcompressor.")] = None,
    activations: Annotated[
        str | None, typer.Option(help="INT8 and FP8: dynamic, or static (measured on calibration text).")
    ] = None,
    smooth: Annotated[
        str | None, typer.Option(help="INT8: SmoothQuant: search, none or a strength from 0 to 1.")
    ] = None,
    kv_cache: Annotated[bool, typer.Option("--kv-cache", help="Store measured scales of an FP8 KV cache.")] = False,
    damp: Annotated[float, typer.Option(help="GPTQ: dampening, a share of the Hessian's mean diagonal.")] = 0.05,
    mse: Annotated[float, typer.Option(help="GPTQ: exponent of the scale search's error; 0 for none.")] = 2.4,
    static_groups: Annotated[bool, typer.Option(help="GPTQ: fix all scales before rounding.")] = False,
    recipe_file: Annotated[
        Path | None, typer.Option("--recipe", help="YAML: bits by module pattern (mixed precision).")
    ] = None,
    target_bpw: Annotated[
        float | None, typer.Option(help="Mixed precision: stored bits per weight, chosen by measured sensitivity.")
    ] = None,
    target_size: Annotated[str | None, typer.Option(help="The same, as a size of the whole model: 4.5GB.")] = None,
    evaluate: Annotated[
        bool, typer.Option("--eval/--no-eval", help="Compare with the original through vLLM at the end.")
    ] = True,
    max_kl: Annotated[
        float | None, typer.Option(help="Exit with 9 when a text's mean KL in nats per token is above this.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace the output folder.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what the run needs and gives; write nothing.")
    ] = False,
    resume: Annotated[bool, typer.Option(help="Go on with an interrupted run.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Quantize a model offline.

    AWQ and GPTQ use calibration text; FP8, INT8 and round-to-nearest (rtn) need none, except for static
    activations, SmoothQuant and KV-cache scales.
    """
    from vllm_quant_plugin.quantize.api import preflight, quantize_model
    from vllm_quant_plugin.quantize.mixed.api import describe_target, make_target, target_summary
    from vllm_quant_plugin.quantize.mixed.recipe_file import for_model, read_lines

    if max_kl is not None and not evaluate:
        raise UsageError("--max-kl needs the evaluation", "leave --no-eval out")
    chosen, lines = read_lines(recipe_file, method, default_method(level))
    recipe = make_recipe(
        chosen, level=level, bits=bits, group_size=group_size, act_order=act_order, symmetric=symmetric,
        backend=backend, calibration=calibration, samples=calibration_samples, seq_len=seq_len, seed=seed,
        packing=not truncate,
        damp=damp, mse=mse, static_groups=static_groups, activations=activations, smooth=smooth, kv_cache=kv_cache,
    )  # fmt: skip
    recipe = for_model(recipe, lines, model)
    chosen_bits = bits is not None or level is not None
    target = make_target(target_bpw, target_size, group_size, lines=bool(lines), bits=chosen_bits)
    if dry_run and target is not None:
        found = describe_target(model, recipe, target)
        print(json.dumps(found, indent=2) if as_json else target_summary(found))
        return
    if dry_run:
        plan = preflight(model, output, recipe, overwrite=overwrite)
        print(json.dumps(plan.to_json(), indent=2) if as_json else plan_summary(plan))
        return
    if recipe.backend == "llmcompressor" and not as_json:
        offer_backend(recipe.backend)
    with progress_bar(recipe.method, enabled=not as_json) as progress:
        if target is not None:
            from vllm_quant_plugin.quantize.mixed.api import quantize_to_target

            report = quantize_to_target(
                model, output, recipe, **asdict(target), overwrite=overwrite, resume=resume, progress=progress
            )
        else:
            report = quantize_model(model, output, recipe, overwrite=overwrite, resume=resume, progress=progress)
    quality = _assess(report, model, max_kl, quiet=as_json) if evaluate else None
    if as_json:
        measured = None if quality is None else quality.to_json()
        print(json.dumps({**report.to_json(), "quality": measured}, indent=2))
    else:
        print(summary(report, quality))
    if quality is not None:
        require_quality(quality, max_kl)


def _assess(report: QuantizeReport, model: str, max_kl: float | None, *, quiet: bool) -> EvalReport | None:
    """The quality report, None (and a note) when it cannot be measured here; with a limit that is an error."""
    from vllm_quant_plugin.evaluate.quality import assess

    try:
        with progress_bar("quality", enabled=not quiet) as progress:
            return assess(
                report.output,
                model,
                recipe=report.recipe.describe(),
                lost=report.errors,
                quick=max_kl is None,
                progress=progress,
            )
    except VqpError as err:
        if max_kl is not None:
            raise QualityError(f"--max-kl cannot be checked: {err.message}", err.hint) from None
        report.warnings.append(f"quality not measured: {err}")
        return None


def reproduce(
    output: Annotated[Path, typer.Argument(help="A folder that `vllm-quant quantize` wrote.")],
    model: Annotated[str | None, typer.Option(help="Where the original is, when it moved.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Repeat a quantization from its record and compare every file.

    Exit code 1 when a file differs.
    """
    from vllm_quant_plugin.quantize.reproduce import reproduce_model, require_identical

    with progress_bar("reproduce", enabled=not as_json) as progress:
        found = reproduce_model(output, model=model, progress=progress)
    require_identical(found)
    print(json.dumps(asdict(found), indent=2) if as_json else f"{output}: identical")


def summary(report: QuantizeReport, quality: EvalReport | None = None) -> str:
    """What a person wants to know about a finished run."""
    mb = 1e6
    lines = [
        f"{report.output}: {report.recipe.describe()}",
        f"  {report.modules} modules, {report.bytes_before / mb:.1f} MB -> {report.bytes_after / mb:.1f} MB"
        f" ({report.bits_per_weight:.2f} bits per quantized weight)",
        f"  {report.seconds:.1f} s, peak memory {report.peak_memory_bytes / 1e9:.2f} GB",
    ]
    if report.mixed is not None:
        checked = ", ".join(f"{kind} {kl:.5f}" for kind, kl in report.mixed["checked_kl"].items())
        lines.append(f"  mixed precision: mean KL on unseen text {checked}; kept {report.mixed['kept']}")
    for text in quality.texts if quality else ():
        if text.kl is not None and text.reference_perplexity is not None:
            floor = f", noise floor {text.noise.mean:.6f}" if text.noise else ""
            lines.append(
                f"  {text.text}: perplexity {text.reference_perplexity:.3f} -> {text.perplexity:.3f}, mean KL"
                f" {text.kl.mean:.5f}{floor}, same likeliest token {text.kl.top1_agreement:.1%}"
            )
    if quality is not None:
        lines.append(f"  quality: {Path(report.output) / 'quality.html'}")
    lines += [f"  note: {warning}" for warning in report.warnings]
    return "\n".join([*lines, f"next: vllm-quant serve {report.output}"])
