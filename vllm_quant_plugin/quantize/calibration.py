"""Calibration text: read, encode, pack into windows. The tokenizer comes from the model's folder."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vllm_quant_plugin.errors import CheckpointError, UsageError
from vllm_quant_plugin.quantize.documents import CHARACTERS, SHIPPED, Document, as_document, read_documents
from vllm_quant_plugin.quantize.hub_dataset import is_hub_dataset, read_hub_rows
from vllm_quant_plugin.quantize.quiet import quiet_output
from vllm_quant_plugin.quantize.recipe import Calibration

FEW_SAMPLES = 32


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that is used here."""

    bos_token_id: int | None
    eos_token_id: int | None

    def encode(self, text: str, **kwargs: Any) -> list[int]: ...

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any: ...


@dataclass(frozen=True)
class Windows:
    """Encoded calibration data.

    Attributes:
        tokens: windows of equal length.
        sha256: of the token ids.
        documents: number of documents they were cut from.
        warnings: what a user should know.
    """

    tokens: list[list[int]]
    sha256: str
    documents: int
    warnings: tuple[str, ...]


def load_tokenizer(folder: Path) -> Tokenizer:
    """The model's own tokenizer.

    Raises:
        CheckpointError: the folder has none that transformers can read.
    """
    try:
        with quiet_output():
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


def _from_hub(source: str, samples: int) -> list[Document]:
    rows = [as_document(row, f"{source}: row {i}") for i, row in enumerate(read_hub_rows(source, samples))]
    documents = [d for d in rows if not isinstance(d, str) or d.strip()]
    if not documents:
        raise UsageError(f"calibration data set {source}: holds no text", "give another, or a file")
    return documents


def _encode(tokenizer: Tokenizer, documents: Iterable[Document]) -> list[list[int]]:
    encoded = []
    for document in documents:
        if isinstance(document, str):
            encoded.append(encode_document(tokenizer, document))
            continue
        try:
            encoded.append(list(tokenizer.apply_chat_template(document, tokenize=True, return_dict=False)))
        except (ValueError, KeyError, TypeError) as err:
            # The first sentence; transformers goes on about documentation.
            reason = str(err).splitlines()[0].partition("! ")[0]
            raise UsageError(
                f"chat messages cannot be encoded: {reason}", "the tokenizer needs a chat template"
            ) from None
    return encoded


def pack_windows(documents: Sequence[Sequence[int]], samples: int, seq_len: int, seed: int) -> list[list[int]]:
    """Windows of ``seq_len`` tokens cut from the documents laid end to end, ``samples`` of them chosen by ``seed``.

    A text shorter than one window is a single, shorter window.
    """
    stream = [token for document in documents for token in document]
    windows = [stream[i : i + seq_len] for i in range(0, len(stream) - seq_len + 1, seq_len)]
    if not windows:
        return [stream]
    random.Random(seed).shuffle(windows)
    return windows[:samples]


def cut_windows(documents: Sequence[Sequence[int]], samples: int, seq_len: int, seed: int) -> list[list[int]]:
    """The first ``seq_len`` tokens of each document that has as many, ``samples`` of them chosen by ``seed``."""
    windows = [list(document[:seq_len]) for document in documents if len(document) >= seq_len]
    random.Random(seed).shuffle(windows)
    return windows[:samples]


def check_source(calibration: Calibration) -> None:
    """Refuse a calibration file that cannot be read or holds no text; a hub data set is looked for in the run only.

    Raises:
        UsageError: as ``load_windows``.
    """
    source = calibration.source
    if source and not _is_on_hub(source):
        read_documents(Path(source))


def _is_on_hub(source: str) -> bool:
    return is_hub_dataset(source) and not Path(source).exists()


def load_windows(calibration: Calibration, tokenizer: Tokenizer) -> Windows:
    """Read, encode and pack.

    Raises:
        UsageError: the file is unreadable or holds no text, or no document is long enough to be cut.
    """
    source, more = calibration.source, False
    if source and _is_on_hub(source):
        documents = _from_hub(source, calibration.samples)
    else:
        documents, more = read_documents(Path(source) if source else SHIPPED, CHARACTERS)
    encoded = _encode(tokenizer, documents)
    form = pack_windows if calibration.packing else cut_windows
    windows = form(encoded, calibration.samples, calibration.seq_len, calibration.seed)
    if not windows:
        longest = max(map(len, encoded))
        raise UsageError(
            f"no calibration document has {calibration.seq_len} tokens (the longest has {longest})",
            "lower --seq-len, or leave --truncate out",
        )
    warnings = []
    if more:
        warnings.append(f"the windows come from the first {CHARACTERS / 1e6:.0f} million characters of {source}")
    if len(windows) < calibration.samples:
        warnings.append(f"the text gives {len(windows)} samples of the {calibration.samples} asked for")
    if len(windows) < FEW_SAMPLES:
        warnings.append(f"{len(windows)} calibration samples are few; {FEW_SAMPLES} or more give steadier results")
    digest = hashlib.sha256(json.dumps(windows).encode()).hexdigest()
    return Windows(windows, digest, len(documents), tuple(warnings))
