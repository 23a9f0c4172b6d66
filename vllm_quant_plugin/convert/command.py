"""``vllm-quant convert``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from vllm_quant_plugin.console import Verbose, progress_bar
from vllm_quant_plugin.convert.api import targets
from vllm_quant_plugin.sizes import format_size


def convert(
    model: Annotated[str, typer.Argument(help="Folder with a quantized model, or hub id.")],
    to: Annotated[str, typer.Option(help=f"Format: {', '.join(targets())}.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to create.")],
    overwrite: Annotated[bool, typer.Option(help="Replace the output folder.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    verbose: Verbose = False,
) -> None:
    """Write a quantized model in another format: every weight the same number, or a refusal that says why."""
    from vllm_quant_plugin.convert.api import convert_model

    with progress_bar(f"to {to}", enabled=not as_json) as progress:
        report = convert_model(model, output, to, overwrite=overwrite, progress=progress)
    if as_json:
        print(json.dumps(report.to_json(), indent=2))
        return
    sizes = f"{format_size(report.bytes_before)} -> {format_size(report.bytes_after)}"
    print(f"{report.output}: {report.modules} modules from {report.method_before} to {report.method_after}, {sizes}")
    print(f"Served on a CPU by {report.served_by['cpu']}, on a GPU by {report.served_by['cuda']}.")
