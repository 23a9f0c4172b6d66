"""What ``vllm-quant quantize`` needs for ``--recipe``, ``--target-bpw`` and ``--target-size``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vllm_quant_plugin.checkpoint import read_checkpoint
from vllm_quant_plugin.errors import UsageError
from vllm_quant_plugin.hub import resolve_model
from vllm_quant_plugin.quantize.mixed.api import Target
from vllm_quant_plugin.quantize.mixed.plan import budget_bytes, candidate_schemes, parse_size, require_feasible
from vllm_quant_plugin.quantize.mixed.recipe_file import apply_lines, read_recipe_file
from vllm_quant_plugin.quantize.mixed.units import find_units
from vllm_quant_plugin.quantize.modules import check_input
from vllm_quant_plugin.quantize.recipe import Recipe


def read_lines(recipe_file: Path | None, method: str | None, default: str = "awq") -> tuple[str, dict[str, Any]]:
    """The method (``-m``, else the file's, else ``default``) and the file's lines.

    Raises:
        UsageError: the file is malformed, or names another method than ``-m``.
    """
    if recipe_file is None:
        return method or default, {}
    named, lines = read_recipe_file(recipe_file)
    if method is not None and named is not None and named != method:
        raise UsageError(f"recipe {recipe_file} says method {named}, -m says {method}", "leave one of them out")
    return method or str(named or default), lines


def for_model(recipe: Recipe, lines: dict[str, Any], model: str | Path) -> Recipe:
    """The recipe with the file's lines applied to the modules of ``model``; as it is without lines."""
    if not lines:
        return recipe
    checkpoint = read_checkpoint(resolve_model(model))
    return apply_lines(recipe, lines, checkpoint, check_input(checkpoint))


def make_target(
    bits_per_weight: float | None, size: str | None, group_size: int | None, *, lines: bool, bits: bool
) -> Target | None:
    """The target that the flags ask for, None for none.

    Args:
        lines: there is a recipe file as well.
        bits: there is a ``--bits`` or ``--level`` as well.

    Raises:
        UsageError: flags that exclude each other.
    """
    if bits_per_weight is None and size is None:
        return None
    if bits_per_weight is not None and size is not None:
        raise UsageError("--target-bpw and --target-size exclude each other", "give one of the two")
    if lines:
        raise UsageError("--recipe and a target exclude each other", "the target's search chooses the bits")
    if bits:
        raise UsageError("--bits or --level and a target exclude each other", "the target's search chooses the bits")
    groups = None if group_size is None else (group_size,)
    return Target(bits_per_weight, None if size is None else parse_size(size), groups)


def describe_target(model: str | Path, recipe: Recipe, target: Target) -> dict[str, Any]:
    """What ``--dry-run`` can say of a target without measuring.

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
    """For people."""
    return "\n".join([
        found["recipe"],
        f"  {found['units']} units, each one of {', '.join(found['candidates'])}, or 16 bits",
        f"  {found['bytes_before'] / 1e6:.1f} MB -> at most {found['bytes_after_at_most'] / 1e6:.1f} MB"
        f" ({found['bits_per_weight_at_most']:.2f} bits per quantized weight; {found['bits_per_weight_least']:.2f} is"
        " the least possible)",
    ])  # fmt: skip
