"""What the commands do, as typed calls: ``quantize``, ``convert``, ``evaluate``.

Each takes a folder, a Hub id, or a transformers model that is in memory.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_quant_plugin.console import Progress, no_progress, suppress_output
from vllm_quant_plugin.convert.api import ConvertReport, convert_model
from vllm_quant_plugin.errors import UsageError
from vllm_quant_plugin.quantize.api import make_recipe, preflight, quantize_model
from vllm_quant_plugin.quantize.estimate.preflight import Preflight
from vllm_quant_plugin.quantize.io.output import free_disk
from vllm_quant_plugin.quantize.io.report import QuantizeReport
from vllm_quant_plugin.quantize.options import MixedOptions, SchemeOptions
from vllm_quant_plugin.quantize.recipe import Recipe
from vllm_quant_plugin.sizes import format_size

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from vllm_quant_plugin.evaluate.report import EvalReport

__all__ = [
    "ConvertReport", "Preflight", "QuantizeReport", "Recipe", "convert", "evaluate", "make_recipe", "preflight",
    "quantize",
]  # fmt: skip


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    needed = sum(p.numel() * p.element_size() for p in model.parameters())
    if free_disk(folder) < needed:
        raise UsageError(
            f"the model in memory needs {format_size(needed)} of disk for a copy", "free some, or give its folder"
        )
    with suppress_output():
        model.save_pretrained(folder)
        if tokenizer is None and model.name_or_path:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(model.name_or_path)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)


@contextmanager
def _on_disk(model: Any, tokenizer: Any, beside: Path | None) -> Iterator[str | Path]:
    """A folder or Hub id for ``model``; one in memory is written into a temporary folder during the block."""
    if isinstance(model, (str, Path)):
        yield model
        return
    if not hasattr(model, "save_pretrained"):
        what = type(model).__name__
        raise UsageError(f"a model of type {what} cannot be read", "give a folder, a Hub id or a transformers model")
    parent = None
    if beside is not None:
        parent = beside.absolute().parent
        parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".vqp-model-", dir=parent))
    try:
        _save(model, tokenizer, folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _name(model: Any) -> str:
    return str(model) if isinstance(model, (str, Path)) else str(model.name_or_path or type(model).__name__)


def quantize(
    model: str | Path | PreTrainedModel,
    output: str | Path,
    method: str | Recipe = "awq",
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    overwrite: bool = False,
    resume: bool = False,
    recipe_file: str | Path | None = None,
    target_bpw: float | None = None,
    target_size: str | None = None,
    progress: Progress = no_progress,
    **options: Any,
) -> QuantizeReport:
    """``vllm-quant quantize``, without the quality report at its end (``evaluate.quality.assess``).

    Args:
        model: folder, Hub id, or an unquantized transformers model.
        output: folder to create.
        method: a method's name, with ``options`` as ``make_recipe`` takes them, or a recipe.
        tokenizer: of a model in memory; default: the one of the folder or Hub id that it came from.
        overwrite: replace ``output`` when it is there.
        resume: continue an interrupted run; for a model in memory the copy must be the same to the bit.
        recipe_file: mixed precision: bits by module pattern, as ``--recipe``.
        target_bpw, target_size: mixed precision to a size, as ``--target-bpw`` and ``--target-size``.
        progress: called with (module or stage, done, total).

    Raises:
        VqpError: as ``quantize_model``.
    """
    from vllm_quant_plugin.quantize.mixed.api import make_target, quantize_to_target
    from vllm_quant_plugin.quantize.mixed.recipe_file import for_model, read_lines

    named = method.method if isinstance(method, Recipe) else method
    _, lines = read_lines(recipe_file, named, named)
    mixed = MixedOptions(None if recipe_file is None else Path(recipe_file), target_bpw, target_size)
    target = make_target(mixed, SchemeOptions(group_size=options.get("group_size")))
    recipe = method if isinstance(method, Recipe) else make_recipe(method, **options)
    with _on_disk(model, tokenizer, Path(output)) as folder:
        recipe = for_model(recipe, lines, folder)
        if target is not None:
            return quantize_to_target(
                folder, output, recipe, target, overwrite=overwrite, resume=resume, progress=progress,
                name=_name(model),
            )  # fmt: skip
        return quantize_model(
            folder, output, recipe, overwrite=overwrite, resume=resume, progress=progress, name=_name(model)
        )


def convert(
    model: str | Path | PreTrainedModel,
    output: str | Path,
    to: str,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> ConvertReport:
    """``vllm-quant convert``: a quantized model in another format, every weight the same number.

    Args:
        model: folder, Hub id, or a quantized transformers model.
        output: folder to create.
        to: ``gptq``, ``awq`` or ``compressed-tensors``.
        tokenizer: see ``quantize``.
        overwrite: replace ``output`` when it is there.
        progress: called with (module, done, total).

    Raises:
        VqpError: as ``convert_model``.
    """
    with _on_disk(model, tokenizer, Path(output)) as folder:
        return convert_model(folder, output, to, overwrite=overwrite, progress=progress)


def evaluate(
    model: str | Path | PreTrainedModel,
    *,
    reference: str | Path | PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    **options: Any,
) -> EvalReport:
    """``vllm-quant eval``: perplexity, and KL divergence from ``reference``, as vLLM runs the model.

    Args:
        model: folder, Hub id, or a transformers model.
        reference: the original, likewise.
        tokenizer: of a model in memory.
        options: as ``evaluate_model`` takes them, e.g. ``windows`` and ``texts``.

    Raises:
        VqpError: as ``evaluate_model``.
    """
    from vllm_quant_plugin.evaluate.api import evaluate_model

    with _on_disk(model, tokenizer, None) as folder:
        if reference is None:
            return evaluate_model(folder, **options)
        with _on_disk(reference, tokenizer, None) as original:
            return evaluate_model(folder, reference=original, **options)
