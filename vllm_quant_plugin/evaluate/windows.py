"""Held-out text as token windows. Torch-free."""

from __future__ import annotations

from pathlib import Path

from vllm_quant_plugin.errors import UsageError
from vllm_quant_plugin.quantize.calibration import Tokenizer, encode_document
from vllm_quant_plugin.quantize.documents import SEPARATOR

BUNDLED = Path(__file__).parents[1] / "data" / "stdlib-llama"
DEFAULT_TEXTS = (BUNDLED / "heldout-code.txt", BUNDLED / "heldout-prose.txt")


def read_windows(path: Path, tokenizer: Tokenizer, length: int, count: int | None = None) -> list[list[int]]:
    """Windows of ``length`` tokens without overlap, the first ``count`` of them.

    Documents are separated by newline and NUL; each has BOS before and EOS after it, and they are
    laid end to end. What does not fill a window is left out.

    Raises:
        UsageError: unreadable, or shorter than one window.
    """
    try:
        documents = path.read_text("utf-8").split(SEPARATOR)
    except (OSError, UnicodeDecodeError) as err:
        raise UsageError(f"text {path}: not readable: {err}", "give a UTF-8 text file") from None
    stream = [token for document in documents if document.strip() for token in encode_document(tokenizer, document)]
    windows = [stream[i : i + length] for i in range(0, len(stream) - length + 1, length)]
    if not windows:
        raise UsageError(f"text {path}: {len(stream)} tokens do not fill a window of {length}", "lower --window-len")
    return windows[:count]
