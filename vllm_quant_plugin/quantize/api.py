"""``quantize_model``: a whole run as one call."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_quant_plugin.backends.process import peak_memory
from vllm_quant_plugin.backends.store import require_backend
from vllm_quant_plugin.checkpoint import Checkpoint, read_checkpoint, write_json
from vllm_quant_plugin.console import Progress, no_progress
from vllm_quant_plugin.errors import CheckpointError
from vllm_quant_plugin.hub import resolve_model
from vllm_quant_plugin.quantize.calibration import Windows, check_source, load_windows
from vllm_quant_plugin.quantize.estimate.preflight import Preflight, check_room, plan_run
from vllm_quant_plugin.quantize.estimate.speed import SpeedRange
from vllm_quant_plugin.quantize.io.card import model_card
from vllm_quant_plugin.quantize.io.config_writer import config_for
from vllm_quant_plugin.quantize.io.output import (
    RECORD_NAME,
    OutputFolder,
    copy_auxiliary_files,
    free_disk,
    total_memory,
)
from vllm_quant_plugin.quantize.io.report import (
    QuantizeReport,
    describe_coverage,
    describe_source,
    hash_tensor_files,
    versions,
)
from vllm_quant_plugin.quantize.modules import Linear, QuantizedLinear, check_input, check_schemes
from vllm_quant_plugin.quantize.recipe import Recipe, build_recipe, make_recipe
from vllm_quant_plugin.text.windows import load_tokenizer

if TYPE_CHECKING:
    from vllm_quant_plugin.quantize.io.shards import ModelWriter

__all__ = ["Preflight", "QuantizeReport", "Recipe", "build_recipe", "make_recipe", "preflight", "quantize_model"]


def stored_bits_per_weight(before: Checkpoint, after: Checkpoint, modules: Sequence[Linear]) -> float:
    """Bits on disk per quantized weight, with scales, zero points and permutations; biases are left out."""
    names = {m.name for m in modules}
    total = sum(
        info.nbytes for name, info in after.tensors.items()
        if name.rpartition(".")[0] in names and not name.endswith(".bias")
    )  # fmt: skip
    return 8 * total / sum(m.in_features * m.out_features for m in modules)


def preflight(
    model: str | Path, output: str | Path, recipe: Recipe, *, overwrite: bool = False,
    measured: SpeedRange | None = None,
) -> Preflight:  # fmt: skip
    """Everything that can be known and refused before the first weight is read; writes nothing.

    Args:
        measured: the machine's speed (``estimate.speed.measure_speed``), to estimate the time by.

    Raises:
        CheckpointError, UsageError, OutputError: as ``quantize_model``.
    """
    checkpoint, modules, target = _check(model, output, recipe, overwrite)
    if recipe.calibration is not None:
        check_source(recipe.calibration)
    recipe, notes = _fit_positions(checkpoint, recipe)
    return replace(_plan(checkpoint, modules, recipe, target, measured), notes=notes)


def _fit_positions(checkpoint: Checkpoint, recipe: Recipe) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe with calibration windows no longer than the model's context, and a note where they were."""
    limit, wanted = checkpoint.text_config.get("max_position_embeddings"), recipe.calibration
    if wanted is None or not isinstance(limit, int) or wanted.seq_len <= limit:
        return recipe, ()
    note = f"calibration windows cut from {wanted.seq_len} to the model's {limit} positions"
    return replace(recipe, calibration=replace(wanted, seq_len=limit)), (note,)


def _check(
    model: str | Path, output: str | Path, recipe: Recipe, overwrite: bool, resume: bool = False
) -> tuple[Checkpoint, list[QuantizedLinear], OutputFolder]:
    folder = resolve_model(model)
    checkpoint = read_checkpoint(folder)
    modules = check_schemes(check_input(checkpoint), recipe.scheme_for)
    return checkpoint, modules, OutputFolder(Path(output), overwrite=overwrite, source=folder, resumable=resume)


def _plan(
    checkpoint: Checkpoint, modules: Sequence[QuantizedLinear], recipe: Recipe, target: OutputFolder,
    measured: SpeedRange | None = None,
) -> Preflight:  # fmt: skip
    plan = plan_run(checkpoint, modules, recipe, measured)
    check_room(plan, free_disk(target.final.parent), total_memory())
    return plan


def quantize_model(
    model: str | Path,
    output: str | Path,
    recipe: Recipe,
    *,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress = no_progress,
    name: str | None = None,
) -> QuantizeReport:
    """Quantize a model folder or Hub id into a new folder.

    Everything that can be checked from configuration and headers is checked before the first weight is
    read. The output appears under its name only when it is complete.

    Args:
        model: folder with safetensors, or Hub id.
        output: folder to create.
        recipe: see ``make_recipe``.
        overwrite: replace ``output`` when it is there.
        resume: continue an interrupted run of the same recipe, input and versions into ``output``.
        progress: called with (module or stage, done, total).
        name: what the record calls the model; default: ``model``.

    Raises:
        CheckpointError: the input is missing, damaged, pickled or quantized already.
        UsageError: the recipe does not fit the model, or the calibration file is unreadable.
        BackendError: the library that the recipe names is missing or failed.
        OutputError: the output exists or cannot be written.
        ResumeError: the interrupted run was another one.
    """
    started = time.monotonic()
    checkpoint, modules, target = _check(model, output, recipe, overwrite, resume)
    recipe, notes = _fit_positions(checkpoint, recipe)
    found = versions()
    if recipe.library and recipe.library.own_environment:
        found[recipe.backend] = require_backend(recipe.backend).version
    plan = _plan(checkpoint, modules, recipe, target)
    with target as work:
        report = QuantizeReport(
            name or str(model), str(output), recipe, len(modules), checkpoint.nbytes, 0, 0.0, 0.0, 0,
            source=describe_source(checkpoint), versions=found, warnings=list(notes),
        )  # fmt: skip
        try:
            quantizer = _write_tensors(checkpoint, modules, recipe, work, report, progress, target, resume)
        except ValueError as err:
            if isinstance(err, CheckpointError):
                raise
            raise CheckpointError(f"{checkpoint.path}: {err}", "the weights are damaged; download them again") from None
        config = {k: v for k, v in checkpoint.config.items() if k != "quantization_config"}
        config["quantization_config"] = config_for(recipe, checkpoint, modules, quantizer)
        write_json(work / "config.json", config)
        copy_auxiliary_files(checkpoint.path, work)
        written = read_checkpoint(work)
        report.bytes_after = written.nbytes
        report.bits_per_weight = round(stored_bits_per_weight(checkpoint, written, modules), 4)
        report.files = hash_tensor_files(work)
        report.peak_memory_bytes = max(report.peak_memory_bytes, peak_memory())
        report.seconds = round(time.monotonic() - started, 2)
        write_json(work / RECORD_NAME, report.to_json())
        (work / "README.md").write_text(model_card(report, plan), "utf-8")
    return report


def _write_tensors(
    checkpoint: Checkpoint,
    modules: Sequence[QuantizedLinear],
    recipe: Recipe,
    work: Path,
    report: QuantizeReport,
    progress: Progress,
    target: OutputFolder,
    resume: bool,
) -> str:
    """Write the tensors by the way that suits the recipe; returns ``name:version`` of what made the codes."""
    import torch

    from vllm_quant_plugin.quantize.io.shards import ModelWriter

    report.environment = {"torch_threads": torch.get_num_threads(), "cuda": torch.cuda.is_available()}
    writer, quantizer = ModelWriter(work, checkpoint), f"vllm-quant-plugin:{report.versions['vllm-quant-plugin']}"
    if recipe.calibration is None:
        from vllm_quant_plugin.quantize.engine.run import quantize_tensorwise

        quantize_tensorwise(checkpoint, modules, recipe.algorithm, writer, progress)
    else:
        windows = _calibration_windows(checkpoint, recipe, report)
        if recipe.library is None:
            _run_layerwise(checkpoint, modules, recipe, windows, writer, report, progress, target, resume)
        else:
            from vllm_quant_plugin.quantize.engine.library import quantize_with_library

            report.peak_memory_bytes = quantize_with_library(
                checkpoint, modules, recipe, windows.tokens, work, writer, progress
            )
            quantizer = f"{recipe.backend}:{report.versions[recipe.backend]}"
    writer.close()
    return quantizer


def _calibration_windows(checkpoint: Checkpoint, recipe: Recipe, report: QuantizeReport) -> Windows:
    """The recipe's windows; described in the report."""
    wanted = recipe.calibration
    assert wanted is not None
    windows = load_windows(wanted, load_tokenizer(checkpoint.path))
    report.warnings += windows.warnings
    report.calibration = {
        "source": wanted.source or "shipped", "documents": windows.documents, "samples": len(windows.tokens),
        "seq_len": wanted.seq_len, "seed": wanted.seed, "tokens_sha256": windows.sha256,
    }  # fmt: skip
    return windows


def _run_layerwise(
    checkpoint: Checkpoint,
    modules: Sequence[QuantizedLinear],
    recipe: Recipe,
    windows: Windows,
    writer: ModelWriter,
    report: QuantizeReport,
    progress: Progress,
    target: OutputFolder,
    resume: bool,
) -> None:
    """The built-in engine with calibration data and a journal beside the output."""
    from vllm_quant_plugin.quantize.engine.journal import Journal
    from vllm_quant_plugin.quantize.engine.run import quantize_layerwise

    fingerprint = {
        "recipe": recipe.to_json(), "input": report.source, "calibration": windows.sha256,
        "versions": report.versions, "environment": report.environment,
    }  # fmt: skip
    journal = Journal(target.journal, fingerprint, resume=resume)
    target.resumable = True
    report.resumed_layers = journal.layers
    assert report.calibration is not None
    try:
        report.errors = quantize_layerwise(checkpoint, modules, recipe, windows.tokens, writer, journal, progress)
        coverage, notes = describe_coverage(journal.seen, sum(map(len, windows.tokens)))
        report.calibration["coverage"] = coverage
        report.warnings += notes
    finally:
        journal.close()
