"""``quantize_to_target``: bits per module chosen to meet a size, and kept only if better than uniform bits."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vllm_quant_plugin.checkpoint import Checkpoint, read_checkpoint, read_json
from vllm_quant_plugin.console import Progress, no_progress
from vllm_quant_plugin.errors import ResumeError, StartupError, UsageError
from vllm_quant_plugin.hub import resolve_model
from vllm_quant_plugin.interruption import Kept, command_line, leaving
from vllm_quant_plugin.quantize.api import quantize_model
from vllm_quant_plugin.quantize.engine.fingerprint import differences
from vllm_quant_plugin.quantize.io.output import RECORD_NAME, OutputFolder
from vllm_quant_plugin.quantize.io.report import QuantizeReport, describe_source, versions
from vllm_quant_plugin.quantize.mixed.allocation import (
    Allocation,
    Unit,
    allocate,
    budget_bytes,
    candidate_schemes,
    find_units,
    require_feasible,
)
from vllm_quant_plugin.quantize.mixed.recipe_file import with_schemes
from vllm_quant_plugin.quantize.modules import check_input
from vllm_quant_plugin.quantize.options import Calibration, MixedOptions, SchemeOptions
from vllm_quant_plugin.quantize.recipe import Recipe
from vllm_quant_plugin.sizes import format_size, parse_size
from vllm_quant_plugin.writing import replace_text, temporary_folder, writing

# Calibration windows that the sensitivities are measured on, and other ones for the check at the end.
SENSITIVITY_WINDOWS = 6
CHECK_WINDOWS = 16
WINDOW_LEN = 256
_PLAN = "plan.json"


@dataclass(frozen=True)
class Target:
    """How large the result may be: one of the two.

    Attributes:
        bits_per_weight: of the quantized modules, with scales and zero points.
        size: bytes of all tensors.
        group_sizes: that may be used, None for 32, 64 and 128.
    """

    bits_per_weight: float | None = None
    size: int | None = None
    group_sizes: tuple[int, ...] | None = None


def _windows(checkpoint: Checkpoint, recipe: Recipe) -> tuple[list[list[int]], list[list[int]]]:
    """Windows to measure on, and others to check on, from the calibration text."""
    from vllm_quant_plugin.quantize.calibration import load_windows
    from vllm_quant_plugin.text.windows import load_tokenizer

    limit = checkpoint.text_config.get("max_position_embeddings")
    length = min(WINDOW_LEN, limit - 1) if isinstance(limit, int) else WINDOW_LEN
    wanted = recipe.calibration or Calibration(samples=SENSITIVITY_WINDOWS)
    seq_len = max(length, min(wanted.seq_len, limit) if isinstance(limit, int) else wanted.seq_len)
    more = replace(wanted, samples=wanted.samples + CHECK_WINDOWS, seq_len=seq_len)
    found = load_windows(more, load_tokenizer(checkpoint.path)).tokens
    if len(found) < 2 or len(found[0]) < length:
        raise UsageError("the calibration text is too short to measure on", f"give {16 * length} tokens or more")
    # Those behind the calibration's own are not seen by GPTQ or AWQ.
    unseen = found[wanted.samples :] or found[len(found) // 2 :]
    cut = [window[:length] for window in found]
    return cut[: min(SENSITIVITY_WINDOWS, len(found) - 1)], [window[:length] for window in unseen]


def search(
    checkpoint: Checkpoint, recipe: Recipe, target: Target, progress: Progress = no_progress
) -> tuple[Allocation, list[Unit]]:
    """Measure the sensitivities and solve for the target.

    Raises:
        UsageError: the method or the model cannot meet it.
    """
    units = find_units(check_input(checkpoint))
    candidates = candidate_schemes(recipe, units, target.group_sizes)
    budget = budget_bytes(units, checkpoint.nbytes, target.bits_per_weight, target.size)
    require_feasible(units, candidates, budget)
    from vllm_quant_plugin.quantize.mixed.sensitivity import measure_units

    tokens, _ = _windows(checkpoint, recipe)
    losses = measure_units(checkpoint, units, candidates, recipe, tokens, progress)
    return allocate(units, candidates, losses, budget), units


def quantize_to_target(
    model: str | Path,
    output: str | Path,
    recipe: Recipe,
    target: Target,
    *,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress = no_progress,
    name: str | None = None,
) -> QuantizeReport:
    """Quantize so that the result has a given size, with the bits of each module chosen for the least divergence.

    The result and the best uniform one that is no larger are both made and compared through vLLM on calibration
    text that neither has seen; the better one becomes the output, and the report says which and by how much.

    Args:
        model, output, overwrite, resume, progress, name: see ``quantize_model``.
        recipe: method, calibration, symmetry; its bits and group size play no part.
        target: how large the result may be.

    Raises:
        UsageError: a target that cannot be met.
        VqpError: as ``quantize_model``.
    """
    started = time.monotonic()
    folder = resolve_model(model)
    checkpoint = read_checkpoint(folder)
    final = OutputFolder(Path(output), overwrite=overwrite, source=folder)
    scratch = final.final.with_name(f".{final.final.name}.search")

    def kept() -> Kept | None:
        if not (scratch / _PLAN).exists():
            shutil.rmtree(scratch, ignore_errors=True)
            return None
        command = command_line("--resume")
        return Kept(f"the search is kept in {scratch}", f"resume with: {command}" if command else "resume it")

    with leaving(kept):
        return _quantize_to_target(
            checkpoint, recipe, target, final, scratch, str(output), name or str(model), resume, progress, started
        )


def _quantize_to_target(
    checkpoint: Checkpoint, recipe: Recipe, target: Target, final: OutputFolder, scratch: Path, output: str,
    name: str, resume: bool, progress: Progress, started: float,
) -> QuantizeReport:  # fmt: skip
    plan = _plan(checkpoint, recipe, target, scratch, resume, progress)
    chosen: dict[str, QuantizeReport] = {}
    for kind, fields in plan["recipes"].items():
        place = scratch / kind / final.final.name
        finished = _finished(place) if resume else None
        chosen[kind] = finished or quantize_model(
            checkpoint.path,
            place,
            Recipe.from_json(fields),
            overwrite=True,
            resume=resume,
            progress=progress,
            name=name,
        )
    found = _check(checkpoint, recipe, scratch, final.final.name, list(chosen), progress)
    kept = min(found, key=lambda kind: found[kind]) if found else "mixed"
    report = chosen[kept]
    report.output = output
    report.seconds = round(time.monotonic() - started, 2)
    report.mixed = {**plan["summary"], "checked_kl": found, "kept": kept}
    if kept == "uniform":
        report.warnings.append("uniform bits were better on unseen text than the mixture, so they were kept")
    if not found and "uniform" in chosen:
        report.warnings.append("the mixture was not compared with uniform bits: vLLM did not start here")
    made = scratch / kept / final.final.name
    with writing(made):
        replace_text(made / RECORD_NAME, json.dumps(report.to_json(), indent=2, ensure_ascii=False) + "\n")
    with final as work:
        shutil.rmtree(work)
        made.rename(work)
    shutil.rmtree(scratch, ignore_errors=True)
    return report


def _finished(place: Path) -> QuantizeReport | None:
    """The report of a run that ended before the search was interrupted. An output appears only when it is complete."""
    if not (place / RECORD_NAME).exists():
        return None
    record = read_json(place / RECORD_NAME)
    return QuantizeReport(**{**record, "recipe": Recipe.from_json(record["recipe"])})


def _plan(
    checkpoint: Checkpoint, recipe: Recipe, target: Target, scratch: Path, resume: bool, progress: Progress
) -> dict[str, Any]:
    """The recipes to run: found now, or taken from an interrupted run of the same search."""
    fingerprint = json.loads(json.dumps({
        "recipe": recipe.to_json(), "target": asdict(target), "input": describe_source(checkpoint),
        "versions": versions(),
    }))  # fmt: skip
    path = scratch / _PLAN
    if not resume:
        path.unlink(missing_ok=True)
    if resume and path.exists():
        kept = read_json(path)
        if kept.get("fingerprint") != fingerprint:
            differing = "; ".join(differences(kept.get("fingerprint"), fingerprint))
            raise ResumeError(
                f"the interrupted search differs: {differing}", "repeat its flags, or start over without --resume"
            )
        return kept
    found, units = search(checkpoint, recipe, target, progress)
    recipes = {"mixed": with_schemes(recipe, found.schemes)}
    if found.uniform is not None:
        recipes["uniform"] = replace(recipe, scheme=found.uniform)
    weights = sum(u.weights for u in units)
    summary = {
        "target": asdict(target), "predicted_kl": found.solution.loss,
        "bits_per_weight": 8 * found.solution.cost / weights,
        "exact": found.solution.exact, "gap": found.solution.loss - found.solution.bound,
        "uniform": found.uniform.describe() if found.uniform else None,
        "uniform_predicted_kl": found.uniform_loss if found.uniform else None,
        "uniform_bits_per_weight": 8 * found.uniform_cost / weights if found.uniform else None,
    }  # fmt: skip
    plan = {
        "fingerprint": fingerprint, "summary": summary, "recipes": {k: r.to_json() for k, r in recipes.items()}
    }  # fmt: skip
    with writing(path):
        scratch.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(plan, indent=2))
    return plan


def _check(
    checkpoint: Checkpoint, recipe: Recipe, scratch: Path, name: str, kinds: Sequence[str], progress: Progress
) -> dict[str, float]:
    """Mean KL of each artefact through vLLM on text that none has seen; empty when vLLM does not start."""
    if len(kinds) < 2:
        return {}
    from vllm_quant_plugin.evaluate.api import evaluate_model, record_reference
    from vllm_quant_plugin.evaluate.recording import Text

    _, unseen = _windows(checkpoint, recipe)
    with temporary_folder("vqp-mixed-") as folder:
        try:
            recording = record_reference(
                checkpoint.path, folder, texts=[Text("unseen calibration text", unseen)],
                window_len=len(unseen[0]), noise=False, progress=progress,
            )  # fmt: skip
            reports = {kind: evaluate_model(scratch / kind / name, reference=recording) for kind in kinds}
        except StartupError:
            return {}
    return {kind: found.worst_kl for kind, found in reports.items() if found.worst_kl is not None}


def make_target(mixed: MixedOptions, scheme: SchemeOptions) -> Target | None:
    """The target that the options describe, None for none.

    Raises:
        UsageError: options that exclude each other.
    """
    if mixed.target_bpw is None and mixed.target_size is None:
        return None
    if mixed.target_bpw is not None and mixed.target_size is not None:
        raise UsageError("--target-bpw and --target-size exclude each other", "give one of the two")
    if mixed.recipe_file is not None:
        raise UsageError("--recipe and a target exclude each other", "the target's search chooses the bits")
    if scheme.bits is not None or scheme.level is not None:
        raise UsageError("--bits or --level and a target exclude each other", "the target's search chooses the bits")
    groups = None if scheme.group_size is None else (scheme.group_size,)
    size = None if mixed.target_size is None else parse_size(mixed.target_size, "--target-size")
    return Target(mixed.target_bpw, size, groups)


def describe_target(model: str | Path, recipe: Recipe, target: Target) -> dict[str, Any]:
    """What ``--dry-run`` can report of a target without measuring.

    Raises:
        UsageError: the target cannot be met.
    """
    checkpoint = read_checkpoint(resolve_model(model))
    units = find_units(check_input(checkpoint))
    candidates = candidate_schemes(recipe, units, target.group_sizes)
    budget = budget_bytes(units, checkpoint.nbytes, target.bits_per_weight, target.size)
    require_feasible(units, candidates, budget)
    weights = sum(u.weights for u in units)
    dense = sum(u.stored_bytes(None) for u in units)
    sizes = [sum(u.stored_bytes(c) for u in units) for c in candidates]
    return {
        "recipe": f"{recipe.method.upper()}, bits chosen for a size",
        "units": len(units),
        "candidates": [c.describe() for c in candidates],
        "bytes_before": checkpoint.nbytes,
        "bytes_after_at_most": checkpoint.nbytes - dense + min(budget, dense),
        "bits_per_weight_at_most": round(8 * min(budget, dense) / weights, 4),
        "bits_per_weight_least": round(8 * min(sizes) / weights, 4),
    }


def target_summary(found: dict[str, Any]) -> str:
    """Human-readable summary."""
    return "\n".join([
        found["recipe"],
        f"  {found['units']} units, each one of {', '.join(found['candidates'])}, or 16 bits",
        f"  {format_size(found['bytes_before'])} -> at most {format_size(found['bytes_after_at_most'])}"
        f" ({found['bits_per_weight_at_most']:.2f} bits per quantized weight; {found['bits_per_weight_least']:.2f} is"
        " the least possible)",
    ])  # fmt: skip
