"""``evaluate_model``: perplexity and KL divergence of a checkpoint as vLLM runs it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vllm_quant_plugin.checkpoint import Checkpoint, read_checkpoint
from vllm_quant_plugin.console import Progress, no_progress
from vllm_quant_plugin.errors import UsageError
from vllm_quant_plugin.evaluate.engine import scoring_engine
from vllm_quant_plugin.evaluate.recording import (
    Recording,
    Text,
    fitting_window,
    load_texts,
    record_reference,
    score_in_time,
    vocabulary,
    watch_layers,
)
from vllm_quant_plugin.evaluate.report import EvalReport, LayerError, TextResult, perplexity, summarize_kl
from vllm_quant_plugin.hub import resolve_model
from vllm_quant_plugin.writing import temporary_folder

__all__ = ["EvalReport", "Recording", "evaluate_model", "record_reference"]


def evaluate_model(
    model: str | Path,
    *,
    reference: str | Path | Recording | None = None,
    texts: Sequence[str | Path | Text] = (),
    windows: int | None = 64,
    window_len: int = 256,
    seconds: float | None = None,
    noise: bool = True,
    progress: Progress = no_progress,
    **engine: Any,
) -> EvalReport:
    """Score windows of held-out text with vLLM.

    Args:
        model: folder or Hub id, quantized or not.
        reference: the original, or a recording of it (which then decides texts and windows); adds KL divergence,
            top-1 agreement and the error of every layer.
        texts: files, documents separated by newline and NUL, or encoded texts; default: the two that ship with
            the package.
        windows: first windows of each text, None for all.
        window_len: tokens per window, no more than the model has positions for; figures for different lengths are not
            comparable.
        seconds: a limit for scoring (not for loading); at least two windows of each text are scored.
        noise: measure the noise floor too.
        progress: called with (text, done, total).
        engine: further vLLM engine arguments, e.g. ``dtype`` or ``quantization``.

    Raises:
        CheckpointError, UsageError: bad input.
        StartupError: vLLM does not take the model.
    """
    started = time.monotonic()
    checkpoint = read_checkpoint(resolve_model(model))
    fitting = fitting_window(checkpoint, window_len)
    with temporary_folder("vqp-eval-") as scratch:
        if isinstance(reference, Recording):
            _check_vocabulary(reference.vocabulary, checkpoint)
            report = _compare(str(model), checkpoint, reference, progress, engine)
        elif reference is not None:
            _check_vocabulary(vocabulary(read_checkpoint(resolve_model(reference))), checkpoint)
            load_texts(checkpoint, texts, windows, fitting)
            # The original takes about half of the time.
            recording = record_reference(
                reference, scratch, texts=texts, windows=windows, window_len=fitting,
                seconds=None if seconds is None else seconds / 2, noise=noise, progress=progress, **engine,
            )  # fmt: skip
            report = _compare(str(model), checkpoint, recording, progress, engine)
        else:
            chosen = load_texts(checkpoint, texts, windows, fitting)
            report = _score_alone(str(model), checkpoint, chosen, seconds, progress, engine)
    if fitting != window_len:
        report.notes.append(f"windows cut to {fitting} tokens: the model has {fitting + 1} positions")
    from vllm_quant_plugin.compat import vllm_version  # imports vLLM, which has run by now

    report.vllm = vllm_version()
    report.model_bytes = checkpoint.nbytes
    if reference is not None and not isinstance(reference, Recording):
        report.reference_bytes = read_checkpoint(resolve_model(reference)).nbytes
    report.seconds = round(time.monotonic() - started, 2)
    return report


def _check_vocabulary(size: int, checkpoint: Checkpoint) -> None:
    if size != vocabulary(checkpoint):
        raise UsageError("the reference has another vocabulary", "give the model that this one was made of")


def _score_alone(
    model: str, checkpoint: Checkpoint, texts: list[Text], seconds: float | None, progress: Progress,
    engine: dict[str, Any],
) -> EvalReport:  # fmt: skip
    total = sum(len(t.windows) for t in texts)
    length = len(texts[0].windows[0])
    with scoring_engine(checkpoint, length, **engine) as scorer:

        def score(t: int, w: int) -> None:
            texts[t].scores.append(scorer.run("vqp_tap_score", texts[t].windows[w]))
            progress(texts[t].name, sum(len(x.scores) for x in texts), total)

        score_in_time(texts, seconds, score)
        dtype = scorer.dtype
    results = [
        TextResult(
            t.name, len(t.windows), length, sum(map(len, t.scores)), perplexity([s for r in t.scores for s in r])
        )
        for t in texts
    ]
    return EvalReport(model, None, dtype, None, 0.0, results)


def _compare(
    model: str, checkpoint: Checkpoint, recording: Recording, progress: Progress, engine: dict[str, Any]
) -> EvalReport:
    report = EvalReport(
        model, recording.model, "", "top-k" if recording.top_k else "full", 0.0,
        noise=recording.noise, notes=list(recording.notes),
    )  # fmt: skip
    length = len(recording.texts[0].windows[0])
    total, done = sum(len(t.windows) for t in recording.texts), 0
    with scoring_engine(checkpoint, length, **engine) as scorer:
        report.dtype = scorer.dtype
        report.layers = _mean_over_texts(watch_layers(scorer, recording, record=False))
        for t, text in enumerate(recording.texts):
            scores: list[float] = []
            kl: list[float] = []
            same: list[bool] = []
            for w, window in enumerate(text.windows):
                part = scorer.run("vqp_tap_compare", window, recording.path(t, w))
                scores, kl, same = scores + part[0], kl + part[1], same + part[2]
                done += 1
                progress(text.name, done, total)
            there = perplexity([s for row in text.scores for s in row])
            report.texts.append(
                TextResult(
                    text.name, len(text.windows), length, len(scores), perplexity(scores), there,
                    summarize_kl(kl, same), text.noise,
                )
            )  # fmt: skip
    return report


def _mean_over_texts(found: list[list[tuple[str, float]]]) -> list[LayerError]:
    return [
        LayerError(rows[0][0], round(sum(error for _, error in rows) / len(rows), 8))
        for rows in zip(*found, strict=True)
    ]
