"""The quality report of a model that was just quantized: quick, bounded, and kept beside it.

quality.json     the figures
quality.html     the page
README.md        the model card's section between the two marks
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path

from vllm_quant_plugin.checkpoint import Checkpoint, read_checkpoint
from vllm_quant_plugin.console import Progress, no_progress
from vllm_quant_plugin.errors import StartupError
from vllm_quant_plugin.evaluate.html import html_report
from vllm_quant_plugin.evaluate.recording import fitting_window
from vllm_quant_plugin.evaluate.report import EvalReport
from vllm_quant_plugin.hub import resolve_model
from vllm_quant_plugin.sizes import format_size
from vllm_quant_plugin.writing import replace_text, writing

_BEGIN, _END = "<!-- quality -->", "<!-- end of quality -->"
# Of each text: an eighth of what ``eval`` takes, for an order of magnitude in seconds on a small model.
QUICK_WINDOWS = 12
QUICK_WINDOW_LEN = 256
# For scoring with the original and with the model together; loading comes on top.
QUICK_SECONDS = 120.0
# vLLM holds little beside the weights of a model that scores one window at a time.
_ROOM = 1.3
# On a CPU loading a larger original alone takes minutes, and scoring some more.
QUICK_CPU_BYTES = 4_000_000_000


def _require_memory(original: Checkpoint, *, quick: bool) -> None:
    """Refuse before vLLM is started what would end in the kernel's out-of-memory killer, or take long unasked.

    Raises:
        StartupError: naming the sizes.
    """
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info()[0]
    else:
        import psutil

        free = psutil.virtual_memory().available
        if quick and original.nbytes > QUICK_CPU_BYTES:
            raise StartupError(
                f"the original has {format_size(original.nbytes)}, more than a CPU compares with quickly",
                "run `vllm-quant eval OUT --reference MODEL`",
            )
    if original.nbytes * _ROOM > free:
        raise StartupError(
            f"the original needs {format_size(original.nbytes * _ROOM)} to be compared with and {format_size(free)}"
            " are free",
            "run `vllm-quant eval OUT --reference MODEL` where it fits",
        )


def assess(
    output: str | Path,
    model: str | Path,
    *,
    recipe: str | None = None,
    lost: Mapping[str, float] | None = None,
    windows: int = QUICK_WINDOWS,
    seconds: float = QUICK_SECONDS,
    quick: bool = True,
    progress: Progress = no_progress,
) -> EvalReport:
    """Compare ``output`` with ``model`` through vLLM on the two texts of the package and write the report into it.

    Args:
        output: a folder that ``quantize_model`` wrote.
        model: what it was made of.
        recipe, lost: for the page, see ``html_report``.
        windows: of each text, at most.
        seconds: the limit for scoring.
        quick: leave it when the original is so large that a CPU needs minutes to load it.
        progress: called with (text, done, total).

    Raises:
        StartupError, EngineDiedError: vLLM does not run one of the two here, or not quickly.
        CheckpointError, UsageError: no tokenizer, or no room for a window.
        OutputError: the report cannot be written; the model is as it was.
    """
    from vllm_quant_plugin.evaluate.api import evaluate_model

    folder = Path(output)
    original = read_checkpoint(resolve_model(model))
    _require_memory(original, quick=quick)
    length = fitting_window(original, QUICK_WINDOW_LEN)
    report = evaluate_model(
        folder, reference=original.path, windows=windows, window_len=length, seconds=seconds, progress=progress
    )
    report.model, report.reference = folder.name, Path(str(model)).name
    page, card = html_report(report, folder.name, recipe, dict(lost or {})), folder / "README.md"
    with writing(folder, f"{folder} is complete without its quality report"):
        replace_text(folder / "quality.html", page)
        replace_text(card, with_quality(card.read_text("utf-8"), report))
        replace_text(folder / "quality.json", json.dumps(report.to_json(), indent=2) + "\n")
    return report


def unmeasured_quality(name: str) -> list[str]:
    """Lines of a model card where ``with_quality`` later puts the figures of the model folder ``name``."""
    command = f"vllm-quant eval {shlex.quote(name)} --reference MODEL"
    return [_BEGIN, f"Not measured. `{command}` measures it, with the original as MODEL.", _END]


def with_quality(card: str, report: EvalReport) -> str:
    """The card with the measured quality between its marks; unchanged when it has none."""
    before, begin, rest = card.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not (begin and end):
        return card
    lines = ["| text | perplexity | original | mean KL | p99.9 KL | noise floor | top-1 agreement |"]
    lines.append("|---|---|---|---|---|---|---|")
    for text in report.texts:
        if text.kl is None or text.reference_perplexity is None:
            continue
        noise = "" if text.noise is None else f"{text.noise.mean:.5f}"
        lines.append(
            f"| {text.text} | {text.perplexity:.3f} | {text.reference_perplexity:.3f} | {text.kl.mean:.5f}"
            f" | {text.kl.p999:.4f} | {noise} | {text.kl.top1_agreement:.1%} |"
        )
    window = report.texts[0]
    noise = f" The noise floor is the original against itself in {report.noise}." if report.noise else ""
    lines += [
        "",
        f"Through vLLM in {report.dtype}, {window.windows} windows of {window.window_len} tokens of each text; KL from"
        f" the original in nats per token.{noise} Details: `quality.html`, `quality.json`.",
    ]
    return f"{before}{begin}\n" + "\n".join(lines) + f"\n{end}{after}"
