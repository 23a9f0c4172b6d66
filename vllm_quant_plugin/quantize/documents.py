"""Calibration documents from a file: no more of it than there is use for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vllm_quant_plugin.errors import UsageError

SHIPPED = Path(__file__).with_name("data") / "calibration.txt"
SEPARATOR = "\n\0"
# A file may hold gigabytes, of which all would be encoded: about four million tokens are enough to choose from.
CHARACTERS = 1 << 24
_TEXT_FIELDS = ("text", "content", "prompt")
_FORMS = "give .txt, .json, .jsonl or .parquet"
# A chat is the list of its messages.
Document = str | list[dict[str, Any]]


def length(document: Document) -> int:
    """Characters of a document, of a chat's messages without its template."""
    if isinstance(document, str):
        return len(document)
    return sum(len(str(message.get("content") or "")) for message in document)


def as_document(value: Any, where: str) -> Document:
    """The text or chat of a record.

    Raises:
        UsageError: it holds neither.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        messages = value.get("messages") or value.get("conversations")
        if isinstance(messages, list) and messages:
            return messages
        for field in _TEXT_FIELDS:
            if isinstance(value.get(field), str):
                return value[field]
    if isinstance(value, list) and value and all(isinstance(m, dict) and "role" in m for m in value):
        return value
    raise UsageError(f"{where}: no text in this record", "records are strings, or objects with 'text' or 'messages'")


def _records(path: Path, characters: int) -> Iterator[tuple[str, Any]]:
    """Where a record stands in the file, and the record."""
    if path.suffix == ".parquet":
        import pyarrow.parquet as parquet

        batches = parquet.ParquetFile(path).iter_batches(batch_size=256)
        yield from ((f"row {i}", row) for i, row in enumerate(row for batch in batches for row in batch.to_pylist()))
        return
    with path.open(encoding="utf-8") as file:
        if path.suffix == ".jsonl":
            yield from ((f"line {i}", json.loads(line)) for i, line in enumerate(file, 1) if line.strip())
        elif path.suffix == ".json":
            value = json.load(file)
            if not isinstance(value, list):
                raise UsageError(f"{path}: expected a JSON list", "a list of strings, or of objects with 'text'")
            yield from ((f"item {i}", item) for i, item in enumerate(value))
        else:
            yield from ((f"document {i}", text) for i, text in enumerate(file.read(characters).split(SEPARATOR)))


def read_documents(path: Path, characters: int = CHARACTERS) -> tuple[list[Document], bool]:
    """The first documents of a calibration file, up to ``characters`` characters, and whether that is not all of it.

    ``.json``: a list of strings or records. ``.jsonl``: one of these per line. ``.parquet``: a column ``text``
    or ``messages``. Anything else is plain text, documents separated by newline and NUL.

    Raises:
        UsageError: unreadable, or without text.
    """
    documents: list[Document] = []
    left = characters
    try:
        for where, value in _records(path, characters):
            document = as_document(value, f"{path}: {where}")
            if isinstance(document, str):
                document = document[:left]
            left -= length(document) + len(SEPARATOR)
            if not isinstance(document, str) or document.strip():
                documents.append(document)
            if left <= 0:
                break
    except FileNotFoundError:
        raise UsageError(f"calibration file {path}: no such file", "check --calibration") from None
    except ImportError as err:
        raise UsageError(f"calibration file {path}: {err.name} is not installed", _FORMS) from None
    except (OSError, ValueError) as err:
        raise UsageError(f"calibration file {path}: not readable: {err}", _FORMS) from None
    if not documents:
        raise UsageError(f"calibration file {path}: holds no text", "give a file with text")
    return documents, left <= 0
