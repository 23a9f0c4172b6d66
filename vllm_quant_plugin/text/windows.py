"""Texts as token windows, with the tokenizer of the model's folder."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from vllm_quant_plugin.console import suppress_output
from vllm_quant_plugin.errors import CheckpointError, UsageError
from vllm_quant_plugin.text.documents import SEPARATOR, Document, require_utf8

BUNDLED = Path(__file__).parents[1] / "data" / "stdlib-llama"
HELD_OUT = (BUNDLED / "heldout-code.txt", BUNDLED / "heldout-prose.txt")


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that is used here."""

    bos_token_id: int | None
    eos_token_id: int | None

    def encode(self, text: str, **kwargs: Any) -> list[int]: ...

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any: ...


def load_tokenizer(folder: Path) -> Tokenizer:
    """The model's own tokenizer.

    Raises:
        CheckpointError: the folder has none that transformers can read.
    """
    try:
        with suppress_output():
            from transformers import AutoTokenizer

            return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError) as err:
        reason = str(err).strip().splitlines()[0] if str(err).strip() else type(err).__name__
        raise CheckpointError(
            f"{folder}: no usable tokenizer: {reason}", "add tokenizer.json and tokenizer_config.json"
        ) from None


def encode_document(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of one document with BOS before and EOS after it, where the tokenizer has them."""
    ids = list(tokenizer.encode(text, verbose=False))
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if bos is not None and ids[:1] != [bos]:
        ids.insert(0, bos)
    if eos is not None and ids[-1:] != [eos]:
        ids.append(eos)
    return ids


def encode_documents(tokenizer: Tokenizer, documents: Iterable[Document]) -> list[list[int]]:
    """Token ids of each document; chats go through the tokenizer's chat template.

    Raises:
        UsageError: a chat, and no template for it.
    """
    encoded = []
    for document in documents:
        if isinstance(document, str):
            encoded.append(encode_document(tokenizer, document))
            continue
        try:
            encoded.append(list(tokenizer.apply_chat_template(document, tokenize=True, return_dict=False)))
        except (ValueError, KeyError, TypeError) as err:
            # Only the first sentence: transformers adds advice about its own documentation.
            reason = str(err).splitlines()[0].partition("! ")[0]
            raise UsageError(
                f"chat messages cannot be encoded: {reason}", "the tokenizer needs a chat template"
            ) from None
    return encoded


def concatenate(documents: Iterable[Sequence[int]], length: int) -> tuple[list[int], list[list[int]]]:
    """All documents as one stream of tokens, and its windows of ``length`` tokens without overlap."""
    stream = [token for document in documents for token in document]
    return stream, [stream[i : i + length] for i in range(0, len(stream) - length + 1, length)]


def pack_windows(documents: Sequence[Sequence[int]], samples: int, seq_len: int, seed: int) -> list[list[int]]:
    """Windows of ``seq_len`` tokens from the concatenated documents, ``samples`` of them chosen by ``seed``.

    A text shorter than one window is a single, shorter window.
    """
    stream, windows = concatenate(documents, seq_len)
    if not windows:
        return [stream]
    random.Random(seed).shuffle(windows)
    return windows[:samples]


def cut_windows(documents: Sequence[Sequence[int]], samples: int, seq_len: int, seed: int) -> list[list[int]]:
    """The first ``seq_len`` tokens of each document that has as many, ``samples`` of them chosen by ``seed``."""
    windows = [list(document[:seq_len]) for document in documents if len(document) >= seq_len]
    random.Random(seed).shuffle(windows)
    return windows[:samples]


def read_windows(path: Path, tokenizer: Tokenizer, length: int, count: int | None = None) -> list[list[int]]:
    """Windows of ``length`` tokens of a text without overlap, the first ``count`` of them.

    Documents are separated by newline and NUL; each gets BOS before and EOS after it, and they are
    concatenated. A remainder shorter than a window is dropped.

    Raises:
        UsageError: unreadable, or shorter than one window.
    """
    try:
        require_utf8(path)
        documents = path.read_text("utf-8-sig").split(SEPARATOR)
    except (OSError, ValueError) as err:
        raise UsageError(f"text {path}: not readable: {err}", "give a UTF-8 text file") from None
    encoded = [encode_document(tokenizer, document) for document in documents if document.strip()]
    stream, windows = concatenate(encoded, length)
    if not windows:
        raise UsageError(f"text {path}: {len(stream)} tokens do not fill a window of {length}", "lower --window-len")
    return windows[:count]
