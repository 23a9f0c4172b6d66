"""``vllm-quant quantize``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from vllm_quant_plugin.backends.command import offer_backend
from vllm_quant_plugin.quantize.preflight import summary as plan_summary
from vllm_quant_plugin.quantize.progress import progress_bar
from vllm_quant_plugin.quantize.recipe import LEVEL_EXAMPLES, make_recipe
from vllm_quant_plugin.quantize.report import QuantizeReport


def quantize(
    model: Annotated[str, typer.Argument(help="Model folder, or hub id such as org/name.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to create.")],
    method: Annotated[str, typer.Option("--method", "-m", help="awq, gptq, fp8, int8 or rtn.")] = "awq",
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

    recipe = make_recipe(
        method, level=level, bits=bits, group_size=group_size, act_order=act_order, symmetric=symmetric,
        backend=backend, calibration=calibration, samples=calibration_samples, seq_len=seq_len, seed=seed,
        packing=not truncate,
        damp=damp, mse=mse, static_groups=static_groups, activations=activations, smooth=smooth, kv_cache=kv_cache,
    )  # fmt: skip
    if dry_run:
        plan = preflight(model, output, recipe, overwrite=overwrite)
        print(json.dumps(plan.to_json(), indent=2) if as_json else plan_summary(plan))
        return
    if recipe.backend == "llmcompressor" and not as_json:
        offer_backend(recipe.backend)
    with progress_bar(f"{method} {recipe.scheme.describe()}", enabled=not as_json) as progress:
        report = quantize_model(model, output, recipe, overwrite=overwrite, resume=resume, progress=progress)
    print(json.dumps(report.to_json(), indent=2) if as_json else summary(report))


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


def summary(report: QuantizeReport) -> str:
    """What a person wants to know about a finished run."""
    mb = 1e6
    lines = [
        f"{report.output}: {report.recipe.describe()}",
        f"  {report.modules} modules, {report.bytes_before / mb:.1f} MB -> {report.bytes_after / mb:.1f} MB"
        f" ({report.bits_per_weight:.2f} bits per quantized weight)",
        f"  {report.seconds:.1f} s, peak memory {report.peak_memory_bytes / 1e9:.2f} GB",
    ]
    lines += [f"  note: {warning}" for warning in report.warnings]
    return "\n".join([*lines, f"next: vllm-quant serve {report.output}"])
