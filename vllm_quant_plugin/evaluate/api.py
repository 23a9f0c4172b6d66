"""``evaluate_model``: perplexity and KL divergence of a checkpoint as vLLM runs it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vllm_quant_plugin.checkpoint import Checkpoint, read_checkpoint
from vllm_quant_plugin.errors import CheckpointError, UsageError
from vllm_quant_plugin.evaluate.engine import scoring_engine
from vllm_quant_plugin.evaluate.report import EvalReport, TextResult, perplexity, summarize_kl
from vllm_quant_plugin.evaluate.windows import DEFAULT_TEXTS, read_windows
from vllm_quant_plugin.hub import resolve_model
from vllm_quant_plugin.quantize.calibration import load_tokenizer
from vllm_quant_plugin.quantize.progress import Progress, no_progress

# The reference's log-probabilities are kept on disk; above this only the top k of each row.
FULL_BYTES = 4 << 30
TOP_K = 512
Data = list[tuple[str, list[list[int]]]]


def _vocabulary(checkpoint: Checkpoint) -> int:
    size = checkpoint.text_config.get("vocab_size")
    if not isinstance(size, int):
        raise CheckpointError(f"{checkpoint.path}: config.json has no vocab_size", "add it")
    return size


def evaluate_model(
    model: str | Path,
    *,
    reference: str | Path | None = None,
    texts: Sequence[str | Path] = (),
    windows: int | None = 64,
    window_len: int = 256,
    progress: Progress = no_progress,
    **engine: Any,
) -> EvalReport:
    """Score windows of held-out text with vLLM.

    Args:
        model: folder or hub id, quantized or not.
        reference: the original; adds KL divergence and top-1 agreement.
        texts: files, documents separated by newline and NUL; default: the two that ship with the package.
        windows: first windows of each text, None for all.
        window_len: tokens per window; figures for different lengths are not comparable.
        progress: called with (text, done, total).
        engine: further vLLM engine arguments, e.g. ``dtype`` or ``quantization``.

    Raises:
        CheckpointError, UsageError: bad input.
        StartupError: vLLM does not take the model.
    """
    started = time.monotonic()
    if window_len < 4:
        raise UsageError(f"--window-len {window_len} is too short", "use 4 or more")
    folder = resolve_model(model)
    checkpoint = read_checkpoint(folder)
    limit = checkpoint.text_config.get("max_position_embeddings")
    if isinstance(limit, int) and window_len + 1 > limit:
        raise UsageError(f"--window-len {window_len} does not fit the model's {limit} positions", "lower it")
    original = read_checkpoint(resolve_model(reference)) if reference is not None else None
    if original is not None and _vocabulary(original) != _vocabulary(checkpoint):
        raise UsageError("the reference has another vocabulary", "give the model that this one was made of")
    tokenizer = load_tokenizer(folder)
    paths = [Path(t) for t in texts] or list(DEFAULT_TEXTS)
    data = [(path.name, read_windows(path, tokenizer, window_len, windows)) for path in paths]
    total = sum(len(w) for _, w in data)
    bytes_needed = total * (window_len - 1) * _vocabulary(checkpoint) * 4
    top_k = TOP_K if bytes_needed > FULL_BYTES else 0
    report = EvalReport(
        str(model), None if reference is None else str(reference), str(engine.get("dtype", "auto")),
        None if reference is None else ("top-k" if top_k else "full"), 0.0,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="vqp-eval-") as scratch:
        steps = _Steps(progress, total * (1 if original is None else 2))
        base: list[list[list[float]]] = []
        if original is not None:
            base = _record(original, data, Path(scratch), top_k, steps, {**engine, "quantization": None})
        report.texts = _score(checkpoint, data, base, Path(scratch), steps, engine)
    report.seconds = round(time.monotonic() - started, 2)
    return report


class _Steps:
    """Counts windows for the progress callback."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def __call__(self, what: str) -> None:
        self._done += 1
        self._progress(what, self._done, self._total)


def _kept(scratch: Path, text: int, window: int) -> str:
    return str(scratch / f"{text}-{window}.pt")


def _record(
    original: Checkpoint, data: Data, scratch: Path, top_k: int, step: _Steps, engine: dict[str, Any]
) -> list[list[list[float]]]:
    """The reference's scores per text and window; its log-probabilities go to ``scratch``."""
    length = len(data[0][1][0])
    found: list[list[list[float]]] = []
    with scoring_engine(original, length, **engine) as scorer:
        for t, (_, chosen) in enumerate(data):
            found.append([])
            for w, window in enumerate(chosen):
                found[-1].append(scorer.run("vqp_tap_record", window, _kept(scratch, t, w), top_k))
                step("reference")
    return found


def _score(
    checkpoint: Checkpoint,
    data: Data,
    base: list[list[list[float]]],
    scratch: Path,
    step: _Steps,
    engine: dict[str, Any],
) -> list[TextResult]:
    """The model's figures per text, against the recorded reference when there is one."""
    length = len(data[0][1][0])
    results = []
    with scoring_engine(checkpoint, length, **engine) as scorer:
        for t, (name, chosen) in enumerate(data):
            scores: list[float] = []
            kl: list[float] = []
            same: list[bool] = []
            for w, window in enumerate(chosen):
                if base:
                    part = scorer.run("vqp_tap_compare", window, _kept(scratch, t, w))
                    scores, kl, same = scores + part[0], kl + part[1], same + part[2]
                else:
                    scores += scorer.run("vqp_tap_score", window)
                step(name)
            there = perplexity([s for row in base[t] for s in row]) if base else None
            divergence = summarize_kl(kl, same) if base else None
            results.append(
                TextResult(name, len(chosen), length, len(scores), perplexity(scores), there, divergence)
            )  # fmt: skip
    return results
