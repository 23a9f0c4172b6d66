"""Repeat a run from its ``quantization.json`` and compare every tensor file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_quant_plugin.checkpoint import read_checkpoint, read_json
from vllm_quant_plugin.console import Progress, no_progress
from vllm_quant_plugin.errors import CheckpointError, VqpError
from vllm_quant_plugin.hub import resolve_model
from vllm_quant_plugin.quantize.api import quantize_model
from vllm_quant_plugin.quantize.io.output import RECORD_NAME
from vllm_quant_plugin.quantize.io.report import describe_source, hash_tensor_files, versions
from vllm_quant_plugin.quantize.recipe import Recipe
from vllm_quant_plugin.writing import temporary_folder


@dataclass(frozen=True)
class Reproduction:
    """Result of ``reproduce_model``.

    Attributes:
        identical: every tensor file has the recorded hash.
        differing: files that have not, in the repetition or on disk.
        versions: library -> (recorded, present), where they differ.
    """

    output: str
    identical: bool
    differing: tuple[str, ...]
    versions: dict[str, tuple[str | None, str | None]]


def _record(output: Path) -> dict[str, Any]:
    record = read_json(output / RECORD_NAME)
    if not {"model", "recipe", "files", "source"} <= set(record):
        raise CheckpointError(
            f"{output / RECORD_NAME}: not a record of a quantization run", "give an output of quantize"
        )
    return record


def reproduce_model(
    output: str | Path, *, model: str | Path | None = None, progress: Progress = no_progress
) -> Reproduction:
    """Quantize again as ``output`` was, into a temporary folder beside it, and compare.

    Args:
        output: a folder that ``quantize`` wrote.
        model: where the original is now, when it moved.

    Raises:
        CheckpointError: no record, or the original is not the one that was quantized.
        OutputError: no room beside ``output``.
    """
    output = Path(output)
    record = _record(output)
    recipe = Recipe.from_json(record["recipe"])
    folder = resolve_model(model or record["model"])
    source = describe_source(read_checkpoint(folder))
    changed = sorted(n for n in {**source, **record["source"]} if source.get(n) != record["source"].get(n))
    if changed:
        raise CheckpointError(
            f"{folder}: {changed[0]} is not the file that was quantized", "give the original with --model"
        )
    now, then = versions(), record.get("versions", {})
    other = {n: (then.get(n), now.get(n)) for n in sorted({**then, **now}) if then.get(n) != now.get(n)}
    with temporary_folder(".reproduce-", output.absolute().parent) as scratch:
        again = quantize_model(folder, scratch / "out", recipe, progress=progress).files
    here = hash_tensor_files(output)
    recorded = record["files"]
    differing = tuple(
        name for name in sorted({**recorded, **again, **here})
        if not recorded.get(name) == again.get(name) == here.get(name)
    )  # fmt: skip
    return Reproduction(str(output), not differing, differing, other)


def require_identical(found: Reproduction) -> None:
    """Raise VqpError (exit code 1) unless the files are identical."""
    if found.identical:
        return
    cause = ", ".join(f"{n} {a or 'absent'} -> {b or 'absent'}" for n, (a, b) in found.versions.items())
    raise VqpError(
        f"{found.output}: {', '.join(found.differing)} not reproduced",
        f"versions differ: {cause}" if cause else "the files were changed, or the machine computes otherwise",
    )
