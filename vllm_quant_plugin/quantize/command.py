"""``vllm-quant quantize`` and ``vllm-quant reproduce``."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from vllm_quant_plugin.backends.command import offer_backend
from vllm_quant_plugin.console import Verbose, progress_bar
from vllm_quant_plugin.errors import OutputError, QualityError, VqpError
from vllm_quant_plugin.evaluate.report import EvalReport, require_quality
from vllm_quant_plugin.interruption import Kept, leaving
from vllm_quant_plugin.option_groups import AnyOf
from vllm_quant_plugin.quantize.algorithm import algorithm_options, algorithms, default_method
from vllm_quant_plugin.quantize.estimate.preflight import summary as plan_summary
from vllm_quant_plugin.quantize.io.report import QuantizeReport
from vllm_quant_plugin.quantize.options import Calibration, MixedOptions, QualityOptions, SchemeOptions
from vllm_quant_plugin.quantize.recipe import build_recipe
from vllm_quant_plugin.sizes import format_size


def _names() -> str:
    return ", ".join(a.name for a in algorithms())


def quantize(
    model: Annotated[str, typer.Argument(help="Model folder, or Hub id such as org/name.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to create.")],
    scheme: SchemeOptions,
    calibration: Calibration,
    algorithm: Annotated[dict[str, Any], AnyOf(algorithm_options, "Algorithm")],
    mixed: MixedOptions,
    quality: QualityOptions,
    method: Annotated[
        str | None,
        typer.Option("--method", "-m", help=f"One of {_names()}; default: what --level implies, else awq."),
    ] = None,
    backend: Annotated[str | None, typer.Option(help="builtin, gptqmodel, autoawq or llmcompressor.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace the output folder.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Report what the run needs and gives; write nothing.")
    ] = False,
    resume: Annotated[bool, typer.Option(help="Continue an interrupted run.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    verbose: Verbose = False,
) -> None:
    """Quantize a model offline.

    AWQ and GPTQ use calibration text; FP8, INT8 and round-to-nearest (rtn) need none, except for static
    activations, SmoothQuant and KV-cache scales.
    """
    from vllm_quant_plugin.quantize.api import preflight, quantize_model
    from vllm_quant_plugin.quantize.estimate.speed import measure_speed
    from vllm_quant_plugin.quantize.mixed.api import describe_target, make_target, quantize_to_target, target_summary
    from vllm_quant_plugin.quantize.mixed.recipe_file import for_model, read_lines

    chosen, lines = read_lines(mixed.recipe_file, method, default_method(scheme.level))
    recipe = for_model(build_recipe(chosen, scheme, calibration, algorithm, backend=backend), lines, model)
    target = make_target(mixed, scheme)
    if dry_run and target is not None:
        found = describe_target(model, recipe, target)
        print(json.dumps(found, indent=2) if as_json else target_summary(found))
        return
    if dry_run:
        plan = preflight(model, output, recipe, overwrite=overwrite, measured=measure_speed())
        print(json.dumps(plan.to_json(), indent=2) if as_json else plan_summary(plan))
        return
    if recipe.library and recipe.library.own_environment and not as_json:
        offer_backend(recipe.backend)
    with progress_bar(recipe.method, enabled=not as_json) as progress:
        if target is not None:
            report = quantize_to_target(
                model, output, recipe, target, overwrite=overwrite, resume=resume, progress=progress
            )
        else:
            report = quantize_model(model, output, recipe, overwrite=overwrite, resume=resume, progress=progress)
    measured = _assess(report, model, quality.max_kl, quiet=as_json) if quality.measure else None
    if as_json:
        print(json.dumps({**report.to_json(), "quality": None if measured is None else measured.to_json()}, indent=2))
    else:
        print(summary(report, measured))
    if measured is not None:
        require_quality(measured, quality.max_kl)


def _assess(report: QuantizeReport, model: str, max_kl: float | None, *, quiet: bool) -> EvalReport | None:
    """The quality report, None (and a note) when it cannot be measured here; with a limit that is an error."""
    from vllm_quant_plugin.evaluate.quality import assess

    output = shlex.quote(report.output)
    measure = f"vllm-quant eval {output} --reference {shlex.quote(model)} --html {output}/quality.html"
    kept = Kept(f"{report.output} is complete, but not its quality report", f"measure it with: {measure}")
    try:
        with leaving(lambda: kept), progress_bar("quality", enabled=not quiet) as progress:
            return assess(
                report.output,
                model,
                recipe=report.recipe.describe(),
                lost=report.errors,
                quick=max_kl is None,
                progress=progress,
            )
    except OutputError as err:
        raise OutputError(err.message, f"{err.hint}; then: {measure}") from None
    except VqpError as err:
        if max_kl is not None:
            raise QualityError(f"--max-kl cannot be checked: {err.message}", err.hint) from None
        report.warnings.append(f"quality not measured: {err}")
        return None


def reproduce(
    output: Annotated[Path, typer.Argument(help="A folder that `vllm-quant quantize` wrote.")],
    model: Annotated[str | None, typer.Option(help="Where the original is, when it moved.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    verbose: Verbose = False,
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
    """Human-readable summary of a finished run."""
    lines = [
        f"{report.output}: {report.recipe.describe()}",
        f"  {report.modules} modules, {format_size(report.bytes_before)} -> {format_size(report.bytes_after)}"
        f" ({report.bits_per_weight:.2f} bits per quantized weight)",
        f"  {report.seconds:.1f} s, peak memory {format_size(report.peak_memory_bytes)}",
    ]
    if report.mixed is not None:
        checked = ", ".join(f"{kind} {kl:.5f}" for kind, kl in report.mixed["checked_kl"].items())
        lines.append(f"  mixed precision: mean KL on unseen text {checked}; kept {report.mixed['kept']}")
    for text in quality.texts if quality else ():
        if text.kl is not None and text.reference_perplexity is not None:
            floor = f", noise floor {text.noise.mean:.6f}" if text.noise else ""
            lines.append(
                f"  {text.text}: perplexity {text.reference_perplexity:.3f} -> {text.perplexity:.3f}, mean KL"
                f" {text.kl.mean:.5f}{floor}, top-1 agreement {text.kl.top1_agreement:.1%}"
            )
    if quality is not None:
        lines.append(f"  quality: {Path(report.output) / 'quality.html'}")
    lines += [f"  note: {warning}" for warning in report.warnings]
    return "\n".join([*lines, f"next: vllm-quant serve {report.output}"])
