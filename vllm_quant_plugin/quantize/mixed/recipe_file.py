"""``--recipe FILE.yaml``: which modules get which bits. No torch.

    method: gptq              # optional; -m otherwise
    modules:                  # the first line that matches a module decides
      embed_tokens: 16
      layers.0: 8
      layers.1-30: 4
      layers.31.mlp: {bits: 3, group_size: 32, sym: false}
      lm_head: 16

A pattern is a run of whole components of a module's name; ``a-b`` is a range of numbers and ``*`` any text within a
component. A file that is nothing but patterns needs no ``modules``. Modules that no line names get the recipe's
own scheme.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vllm_quant_kernels.scheme import Int
from vllm_quant_plugin.checkpoint import Checkpoint, read_checkpoint
from vllm_quant_plugin.errors import UsageError
from vllm_quant_plugin.formats.fused import siblings
from vllm_quant_plugin.hub import resolve_model
from vllm_quant_plugin.quantize.algorithm import algorithms
from vllm_quant_plugin.quantize.io.storage import mixed_storage
from vllm_quant_plugin.quantize.modules import Linear, check_input
from vllm_quant_plugin.quantize.recipe import Recipe
from vllm_quant_plugin.schemes import Rule, StoredScheme

_KEYS = ("method", "modules")
_FIELDS = ("bits", "group_size", "sym", "act_order")
_EXAMPLE = "a line is `pattern: bits` or `pattern: {bits: 4, group_size: 64}`"


def _component(text: str) -> str:
    numbers = re.fullmatch(r"(\d+)-(\d+)", text)
    if numbers:
        first, last = int(numbers[1]), int(numbers[2])
        if last < first:
            raise UsageError(f"recipe pattern {text!r}: the range is empty", "write the smaller number first")
        return "(?:" + "|".join(map(str, range(first, last + 1))) + ")"
    return "[^.]*".join(re.escape(part) for part in text.split("*"))


def pattern_regex(pattern: str) -> re.Pattern[str]:
    """A pattern of a recipe file as a regular expression to ``search`` module names with."""
    return re.compile(r"(?:^|\.)" + r"\.".join(map(_component, pattern.split("."))) + r"(?:\.|$)")


def read_recipe_file(path: Path) -> tuple[str | None, dict[str, Any]]:
    """Method, if the file names one, and the lines of a recipe file.

    Raises:
        UsageError: unreadable or not of the form above.
    """
    import yaml  # type: ignore[import-untyped]

    try:
        value = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as err:
        raise UsageError(f"recipe {path}: not readable: {str(err).splitlines()[0]}", "give a YAML file") from None
    if not isinstance(value, dict) or not value:
        raise UsageError(f"recipe {path}: expected a mapping of patterns to bits", _EXAMPLE)
    lines = value
    if "modules" in value:
        unknown = sorted(set(map(str, value)) - set(_KEYS))
        if unknown:
            raise UsageError(f"recipe {path}: {unknown[0]!r} is not known", f"keys are {' and '.join(_KEYS)}")
        lines = value["modules"]
    elif "method" in value:
        lines = {k: v for k, v in value.items() if k != "method"}
    if not isinstance(lines, dict) or not lines:
        raise UsageError(f"recipe {path}: no patterns", _EXAMPLE)
    return value.get("method"), {str(k): v for k, v in lines.items()}


def mixed_scheme(recipe: Recipe) -> StoredScheme:
    """The recipe's scheme in a format that can hold modules of different bits.

    Raises:
        UsageError: a library runs the recipe.
    """
    if recipe.backend != "builtin":
        raise UsageError(f"--backend {recipe.backend} has no mixed precision here", "use the builtin backend")
    return mixed_storage(recipe.scheme)


def _with_act_order() -> str:
    names = [a.name for a in algorithms() if a.act_order]
    return f", or use -m {' or '.join(names)}" if names else ""


def _line_scheme(recipe: Recipe, base: StoredScheme, pattern: str, value: Any) -> StoredScheme | None:
    fields = value if isinstance(value, dict) else {"bits": value}
    unknown = sorted(set(map(str, fields)) - set(_FIELDS))
    bits = fields.get("bits", base.bits)
    if unknown or isinstance(bits, bool) or not isinstance(bits, int):
        raise UsageError(f"recipe line {pattern!r}: {value!r} is not understood", _EXAMPLE)
    if bits == 16:
        return None
    if bits not in recipe.algorithm.bits:
        listed = ", ".join(map(str, (*recipe.algorithm.bits, 16)))
        raise UsageError(f"recipe line {pattern!r}: {recipe.method} cannot store {bits} bits", f"it stores {listed}")
    group = fields.get("group_size", base.group_size)
    if (
        isinstance(group, bool)
        or not isinstance(group, int)
        or (group < 1 and group != base.group_size and group != -1)
    ):
        raise UsageError(f"recipe line {pattern!r}: group size {group!r} is impossible", "it is positive, or -1")
    act_order = bool(fields.get("act_order", base.act_order))
    if act_order and not recipe.algorithm.act_order:
        raise UsageError(
            f"recipe line {pattern!r}: {recipe.method} has no act-order", f"leave act_order out{_with_act_order()}"
        )
    symmetric = bool(fields.get("sym", base.symmetric))
    return replace(base, value=Int(bits), group_size=group, symmetric=symmetric, act_order=act_order)


def apply_lines(recipe: Recipe, lines: Mapping[str, Any], checkpoint: Checkpoint, modules: Sequence[Linear]) -> Recipe:
    """The recipe with one rule for every module that a line matches.

    Args:
        modules: those that can be quantized.

    Raises:
        UsageError: a line that matches nothing, gives bits that cannot be, or tears fused modules apart.
    """
    base = mixed_scheme(recipe)
    compiled = [(p, pattern_regex(p), _line_scheme(recipe, base, p, v)) for p, v in lines.items()]
    quantizable = {m.name for m in modules}
    others = {n.rpartition(".")[0] for n in checkpoint.tensors} - quantizable
    # Tied to the embedding, it has no tensors of its own.
    others.add("lm_head")
    for pattern, regex, scheme in compiled:
        if any(regex.search(name) for name in quantizable):
            continue
        if not any(regex.search(name) for name in others):
            raise UsageError(f"recipe line {pattern!r} matches no module", "see `vllm-quant inspect MODEL` for names")
        if scheme is not None:
            raise UsageError(f"recipe line {pattern!r}: these modules stay in 16 bits", f"write `{pattern}: 16`")
    chosen: dict[str, StoredScheme | None] = {
        m.name: next((scheme for _, regex, scheme in compiled if regex.search(m.name)), base) for m in modules
    }
    for name in chosen:
        torn = next((s for s in siblings(name) if s in chosen and chosen[s] != chosen[name]), None)
        if torn:
            raise UsageError(f"the recipe gives {name} and {torn} different schemes", "vLLM loads them as one matrix")
    return with_schemes(recipe, chosen)


def with_schemes(recipe: Recipe, chosen: Mapping[str, StoredScheme | None]) -> Recipe:
    """The recipe with a rule for each module; its own scheme becomes the one that most modules have."""
    kept = [scheme for scheme in chosen.values() if scheme is not None]
    if not kept:
        raise UsageError("the recipe leaves every module in 16 bits", "give some module 8 bits or fewer")
    common = max(dict.fromkeys(kept), key=kept.count)
    rules = tuple(Rule(name, scheme, "path") for name, scheme in chosen.items())
    return replace(recipe, scheme=common, rules=rules)


def read_lines(recipe_file: str | Path | None, method: str | None, default: str) -> tuple[str, dict[str, Any]]:
    """The method (``-m``, else the file's, else ``default``) and the file's lines.

    Raises:
        UsageError: the file is malformed, or names another method than ``-m``.
    """
    if recipe_file is None:
        return method or default, {}
    named, lines = read_recipe_file(Path(recipe_file))
    if method is not None and named is not None and str(named).lower() != method.lower():
        raise UsageError(f"recipe {recipe_file} has method {named}, -m has {method}", "leave one of them out")
    return method or str(named or default), lines


def for_model(recipe: Recipe, lines: dict[str, Any], model: str | Path) -> Recipe:
    """The recipe with the file's lines applied to the modules of ``model``; as it is without lines."""
    if not lines:
        return recipe
    checkpoint = read_checkpoint(resolve_model(model))
    return apply_lines(recipe, lines, checkpoint, check_input(checkpoint))
