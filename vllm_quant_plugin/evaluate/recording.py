"""A reference's scores on windows of held-out text: recorded once, compared with as many models as one likes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm_quant_plugin.checkpoint import Checkpoint, read_checkpoint
from vllm_quant_plugin.console import Progress, no_progress
from vllm_quant_plugin.errors import CheckpointError, UsageError
from vllm_quant_plugin.evaluate.engine import Scorer, scoring_engine
from vllm_quant_plugin.evaluate.report import Divergence, summarize_kl
from vllm_quant_plugin.hub import resolve_model
from vllm_quant_plugin.text.windows import HELD_OUT, load_tokenizer, read_windows

# The reference's log-probabilities are kept on disk; above this only the top k of each row.
FULL_BYTES = 4 << 30
TOP_K = 512
# Of each text, for the noise floor: it is an order of magnitude, not a figure to compare.
NOISE_WINDOWS = 8
# Time limits never leave fewer windows of a text than this.
MIN_WINDOWS = 2


@dataclass
class Text:
    """One text: its name and windows of equal length; ``scores`` are the reference's, per window."""

    name: str
    windows: list[list[int]]
    scores: list[list[float]] = field(default_factory=list)
    noise: Divergence | None = None


@dataclass
class Recording:
    """See the module's docstring.

    Attributes:
        model: as the user named it.
        folder: where the log-probabilities lie.
        top_k: how many of each row are kept, 0 for all.
        vocabulary: number of tokens.
        noise: the dtypes that the noise was measured between, None when it was not.
    """

    model: str
    folder: Path
    texts: list[Text]
    top_k: int
    vocabulary: int
    noise: str | None = None
    notes: list[str] = field(default_factory=list)

    def path(self, text: int, window: int) -> str:
        """File of a window's log-probabilities."""
        return str(self.folder / f"{text}-{window}.safetensors")

    def layers_path(self, text: int) -> str:
        """File of the hidden states of a text's first window."""
        return str(self.folder / f"{text}-layers.safetensors")


def vocabulary(checkpoint: Checkpoint) -> int:
    """Number of tokens of a model."""
    size = checkpoint.text_config.get("vocab_size")
    if not isinstance(size, int):
        raise CheckpointError(f"{checkpoint.path}: config.json has no vocab_size", "add it")
    return size


def fitting_window(checkpoint: Checkpoint, window_len: int) -> int:
    """Tokens per window: as many as are wanted, or what the model's positions hold beside the one that is generated."""
    limit = checkpoint.text_config.get("max_position_embeddings")
    return min(window_len, limit - 1) if isinstance(limit, int) and limit > 4 else window_len


def load_texts(
    checkpoint: Checkpoint, paths: Sequence[str | Path | Text], windows: int | None, window_len: int
) -> list[Text]:
    """Held-out texts in the model's tokens; a ``Text`` is taken as it is, without scores.

    Raises:
        UsageError: unreadable text, or a window that is too short or does not fit the model.
    """
    if window_len < 4:
        raise UsageError(f"--window-len {window_len} is too short", "use 4 or more")
    tokenizer = load_tokenizer(checkpoint.path)
    found = []
    for item in paths or HELD_OUT:
        if isinstance(item, Text):
            found.append(Text(item.name, list(item.windows)))
        else:
            found.append(Text(Path(item).name, read_windows(Path(item), tokenizer, window_len, windows)))
    return found


def in_turn(texts: Sequence[Text]) -> Iterator[tuple[int, int]]:
    """(text, window) with all texts' first windows first: a time limit cuts every text alike."""
    for w in range(max(len(text.windows) for text in texts)):
        yield from ((t, w) for t, text in enumerate(texts) if w < len(text.windows))


def score_in_time(texts: list[Text], seconds: float | None, score: Any) -> None:
    """Call ``score(text, window)`` in turn; when the time is over, drop the windows that are left."""
    started = time.monotonic()
    done = [0] * len(texts)
    for t, w in in_turn(texts):
        if seconds is not None and w >= MIN_WINDOWS and time.monotonic() - started > seconds:
            break
        score(t, w)
        done[t] = w + 1
    for text, count in zip(texts, done, strict=True):
        del text.windows[count:]


def record_reference(
    model: str | Path,
    folder: Path,
    *,
    texts: Sequence[str | Path | Text] = (),
    windows: int | None = 64,
    window_len: int = 256,
    seconds: float | None = None,
    noise: bool = True,
    progress: Progress = no_progress,
    **engine: Any,
) -> Recording:
    """Score windows with the original model.

    Args:
        model: folder or Hub id.
        folder: for the log-probabilities, up to 4 GB.
        texts, windows, window_len: see ``evaluate_model``.
        seconds: stop scoring after this time; at least two windows of each text are scored.
        noise: run it in a second dtype as well, on a few windows.
        engine: vLLM engine arguments.

    Raises:
        CheckpointError, UsageError, StartupError: as ``evaluate_model``.
    """
    original = read_checkpoint(resolve_model(model))
    chosen = load_texts(original, texts, windows, window_len)
    size = vocabulary(original)
    needed = sum(len(t.windows) for t in chosen) * (window_len - 1) * size * 4
    found = Recording(str(model), folder, chosen, TOP_K if needed > FULL_BYTES else 0, size)
    total = sum(len(t.windows) for t in chosen)
    engine = {**engine, "quantization": None}
    with scoring_engine(original, window_len, **engine) as scorer:
        dtype = scorer.dtype
        watch_layers(scorer, found, record=True)

        def score(t: int, w: int) -> None:
            text = found.texts[t]
            text.scores.append(scorer.run("vqp_tap_record", text.windows[w], found.path(t, w), found.top_k))
            progress("reference", sum(len(x.scores) for x in found.texts), total)

        score_in_time(found.texts, seconds, score)
    if noise:
        _measure_noise(found, original, dtype, window_len, engine)
    return found


def watch_layers(scorer: Scorer, recording: Recording, *, record: bool) -> list[list[tuple[str, float]]]:
    """Hidden states after each layer on the first window of each text: stored, or compared with those stored."""
    found = []
    for t, text in enumerate(recording.texts):
        scorer.call("vqp_tap_watch_layers")
        found.append(scorer.run("vqp_tap_layers", text.windows[0], recording.layers_path(t), record))
    return found


def _fits(checkpoint: Checkpoint, dtype: str) -> bool:
    """Whether the weights in ``dtype`` leave a quarter of the free memory."""
    import psutil

    return checkpoint.nbytes * (2 if dtype == "float32" else 1) < 0.75 * psutil.virtual_memory().available


def _measure_noise(found: Recording, original: Checkpoint, dtype: str, window_len: int, engine: dict[str, Any]) -> None:
    import torch

    other = "bfloat16" if dtype != "bfloat16" else ("float16" if torch.cuda.is_available() else "float32")
    if not _fits(original, other):
        found.notes.append(f"noise floor not measured: the original in {other} does not fit the memory")
        return
    found.noise = f"{dtype} and {other}"
    with scoring_engine(original, window_len, **{**engine, "dtype": other}) as scorer:
        for t, text in enumerate(found.texts):
            kl: list[float] = []
            same: list[bool] = []
            for w, window in enumerate(text.windows[:NOISE_WINDOWS]):
                _, part, agreed = scorer.run("vqp_tap_compare", window, found.path(t, w))
                kl, same = kl + part, same + agreed
            text.noise = summarize_kl(kl, same)
