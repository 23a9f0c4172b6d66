"""``quantize_model``: the whole offline path as one call."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from vllm_quant_plugin.backends.store import require_backend
from vllm_quant_plugin.checkpoint import Checkpoint, read_checkpoint, write_json
from vllm_quant_plugin.console import Progress, no_progress
from vllm_quant_plugin.errors import CheckpointError
from vllm_quant_plugin.hub import resolve_model
from vllm_quant_plugin.quantize.calibration import check_source
from vllm_quant_plugin.quantize.estimate.preflight import Preflight, check_room, plan_run
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
    peak_memory,
    versions,
)
from vllm_quant_plugin.quantize.modules import Linear, check_input, check_schemes
from vllm_quant_plugin.quantize.options import make_recipe
from vllm_quant_plugin.quantize.recipe import Recipe

__all__ = ["Preflight", "QuantizeReport", "Recipe", "make_recipe", "preflight", "quantize_model"]


def stored_bits_per_weight(before: Checkpoint, after: Checkpoint, modules: list[Linear]) -> float:
    """Bits on disk per quantized weight, with scales, zero points and permutations; biases are left out."""
    names = {m.name for m in modules}
    total = sum(
        info.nbytes for name, info in after.tensors.items()
        if name.rpartition(".")[0] in names and not name.endswith(".bias")
    )  # fmt: skip
    return 8 * total / sum(m.in_features * m.out_features for m in modules)


def preflight(model: str | Path, output: str | Path, recipe: Recipe, *, overwrite: bool = False) -> Preflight:
    """Everything that can be known and refused before the first weight is read; writes nothing.

    Raises:
        CheckpointError, UsageError, OutputError: as ``quantize_model``.
    """
    checkpoint, modules, target = _check(model, output, recipe, overwrite)
    if recipe.calibration is not None:
        check_source(recipe.calibration)
    plan = plan_run(checkpoint, modules, recipe)
    check_room(plan, free_disk(target.final.parent), total_memory())
    return plan


def _check(
    model: str | Path, output: str | Path, recipe: Recipe, overwrite: bool
) -> tuple[Checkpoint, list[Linear], OutputFolder]:
    folder = resolve_model(model)
    checkpoint = read_checkpoint(folder)
    modules = check_schemes(check_input(checkpoint), recipe.scheme_for)
    return checkpoint, modules, OutputFolder(Path(output), overwrite=overwrite, source=folder)


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
    """Quantize a model folder or hub id into a new folder.

    Everything that can be checked from configuration and headers is checked before the first weight is
    read. The output appears under its name only when it is complete.

    Args:
        model: folder with safetensors, or hub id.
        output: folder to create.
        recipe: see ``make_recipe``.
        overwrite: replace ``output`` when it is there.
        resume: go on with a run of the same recipe, input and versions into ``output`` that was interrupted.
        progress: called with (module or stage, done, total).
        name: what the record calls the model; default: ``model``.

    Raises:
        CheckpointError: the input is missing, damaged, pickled or quantized already.
        UsageError: the recipe does not fit the model, or the calibration file is unreadable.
        BackendError: the library that the recipe names is missing or failed.
        OutputError: the output exists or cannot be written.
    """
    started = time.monotonic()
    checkpoint, modules, target = _check(model, output, recipe, overwrite)
    folder = checkpoint.path
    found = versions()
    if recipe.backend == "llmcompressor":
        found[recipe.backend] = require_backend(recipe.backend).version
    plan = plan_run(checkpoint, modules, recipe)
    check_room(plan, free_disk(target.final.parent), total_memory())
    with target as work:
        report = QuantizeReport(
            name or str(model), str(output), recipe, len(modules), checkpoint.nbytes, 0, 0.0, 0.0, 0,
            source=describe_source(checkpoint), versions=found,
        )  # fmt: skip
        try:
            quantizer = _run(checkpoint, modules, recipe, work, report, progress, target.journal, resume)
        except ValueError as err:
            if isinstance(err, CheckpointError):
                raise
            raise CheckpointError(f"{folder}: {err}", "the weights are damaged; download them again") from None
        config = {k: v for k, v in checkpoint.config.items() if k != "quantization_config"}
        config["quantization_config"] = config_for(recipe, checkpoint, modules, quantizer)
        write_json(work / "config.json", config)
        copy_auxiliary_files(folder, work)
        written = read_checkpoint(work)
        report.bytes_after = written.nbytes
        report.bits_per_weight = round(stored_bits_per_weight(checkpoint, written, modules), 4)
        report.files = hash_tensor_files(work)
        report.peak_memory_bytes = max(report.peak_memory_bytes, peak_memory())
        report.seconds = round(time.monotonic() - started, 2)
        write_json(work / RECORD_NAME, report.to_json())
        (work / "README.md").write_text(model_card(report, plan), "utf-8")
    return report


def _run(
    checkpoint: Checkpoint,
    modules: list[Linear],
    recipe: Recipe,
    work: Path,
    report: QuantizeReport,
    progress: Progress,
    journal_folder: Path,
    resume: bool,
) -> str:
    """Write the tensors; returns ``name:version`` of what made the codes."""
    import torch

    from vllm_quant_plugin.quantize.io.shards import ModelWriter

    report.environment = {"torch_threads": torch.get_num_threads(), "cuda": torch.cuda.is_available()}
    ours = f"vllm-quant-plugin:{report.versions['vllm-quant-plugin']}"
    if recipe.calibration is None:
        from vllm_quant_plugin.quantize.algorithms.datafree import quantize_data_free

        writer = ModelWriter(work, checkpoint)
        quantize_data_free(checkpoint, modules, recipe, writer, progress)
        writer.close()
        return ours
    from vllm_quant_plugin.quantize.calibration import load_windows
    from vllm_quant_plugin.text.windows import load_tokenizer

    limit = checkpoint.text_config.get("max_position_embeddings")
    wanted = recipe.calibration
    if isinstance(limit, int) and wanted.seq_len > limit:
        wanted = replace(wanted, seq_len=limit)
        report.warnings.append(f"calibration windows cut to the model's {limit} positions")
    windows = load_windows(wanted, load_tokenizer(checkpoint.path))
    report.warnings += windows.warnings
    report.calibration = {
        "source": wanted.source or "shipped", "documents": windows.documents, "samples": len(windows.tokens),
        "seq_len": wanted.seq_len, "seed": wanted.seed, "tokens_sha256": windows.sha256,
    }  # fmt: skip
    writer = ModelWriter(work, checkpoint)
    if recipe.backend == "builtin":
        from vllm_quant_plugin.quantize.engine.journal import Journal
        from vllm_quant_plugin.quantize.engine.run import quantize_layerwise

        fingerprint = {
            "recipe": recipe.to_json(), "input": report.source, "calibration": windows.sha256,
            "versions": report.versions, "environment": report.environment,
        }  # fmt: skip
        journal = Journal(journal_folder, fingerprint, resume=resume)
        report.resumed_layers = journal.layers
        try:
            report.errors = quantize_layerwise(checkpoint, modules, recipe, windows.tokens, writer, journal, progress)
            found, notes = describe_coverage(journal.seen, sum(map(len, windows.tokens)))
            report.calibration["coverage"] = found
            report.warnings += notes
        finally:
            journal.close()
        writer.close()
        return ours
    from vllm_quant_plugin.quantize.engine.library import quantize_with_library

    report.peak_memory_bytes = quantize_with_library(
        checkpoint, modules, recipe, windows.tokens, work, writer, progress
    )  # fmt: skip
    writer.close()
    return f"{recipe.backend}:{report.versions[recipe.backend]}"
