"""Documents from a file or a data set on the Hub: no more of them than there is use for."""

from __future__ import annotations

import codecs
import itertools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vllm_quant_plugin.console import suppress_output
from vllm_quant_plugin.errors import UsageError

SEPARATOR = "\n\0"
# A file may hold gigabytes, of which all would be encoded: about four million tokens are enough to choose from.
CHARACTERS = 1 << 24
_TEXT_FIELDS = ("text", "content", "prompt")
_RECORDS = "records are strings, or objects with 'text' or 'messages'"
_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"), (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"), (codecs.BOM_UTF16_BE, "UTF-16"),
)  # fmt: skip
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
        wrong = next((field for field in _TEXT_FIELDS if value.get(field) is not None), None)
        if wrong is not None:
            raise UsageError(f"{where}: {wrong!r} is {_kind(value[wrong])}, not a string", _RECORDS)
        names = ", ".join(map(repr, list(value)[:4])) or "none"
        raise UsageError(f"{where}: no text in this record, its fields are {names}", _RECORDS)
    if isinstance(value, list) and value and all(isinstance(m, dict) and "role" in m for m in value):
        return value
    raise UsageError(f"{where}: no text in this record, it is {_kind(value)}", _RECORDS)


def _kind(value: Any) -> str:
    """What a JSON value is, in words."""
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), "null" if value is None else type(value).__name__)


def require_utf8(path: Path) -> None:
    """Refuse a file that begins like another encoding than UTF-8.

    Raises:
        ValueError: naming the encoding.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        begin = file.read(4)
    # UTF-32's mark begins like UTF-16's.
    for mark, name in _MARKS:
        if begin.startswith(mark):
            raise ValueError(f"it is encoded as {name}; save it as UTF-8")


def _undecodable_line(path: Path) -> int:
    """The first line that is not UTF-8, counted from 1."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    return 0


def _records(path: Path, characters: int) -> Iterator[tuple[str, Any]]:
    """Where a record stands in the file, counted from 1, and the record."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        import pyarrow.parquet as parquet

        batches = parquet.ParquetFile(path).iter_batches(batch_size=256)
        rows = (row for batch in batches for row in batch.to_pylist())
        yield from ((f"row {i}", row) for i, row in enumerate(rows, 1))
        return
    require_utf8(path)
    with path.open(encoding="utf-8-sig") as file:
        if suffix == ".jsonl":
            for i, line in enumerate(file, 1):
                if line.strip():
                    yield f"line {i}", _json_line(line, i)
        elif suffix == ".json":
            value = json.load(file)
            if not isinstance(value, list):
                raise UsageError(f"{path}: expected a JSON list", "a list of strings, or of objects with 'text'")
            yield from ((f"item {i}", item) for i, item in enumerate(value, 1))
        else:
            yield from ((f"document {i}", text) for i, text in enumerate(file.read(characters).split(SEPARATOR), 1))


def _json_line(line: str, number: int) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as err:
        # Its own text counts lines within the one line that it sees.
        raise ValueError(f"line {number} is not JSON: {err.msg} at column {err.colno}") from None


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
    except UnicodeDecodeError:
        raise UsageError(
            f"calibration file {path}: line {_undecodable_line(path)} is not UTF-8", "save it as UTF-8"
        ) from None
    except OSError as err:
        raise UsageError(f"calibration file {path}: not readable: {err.strerror or err}", _FORMS) from None
    except ValueError as err:
        empty = not path.stat().st_size
        raise UsageError(
            f"calibration file {path}: {'is empty' if empty else f'not readable: {err}'}", _FORMS
        ) from None
    if not documents:
        raise UsageError(f"calibration file {path}: holds no text", "give a file with text")
    return documents, left <= 0


_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+(:[\w.-]+){0,2}$")
_FILES = (".txt", ".json", ".jsonl", ".parquet")
# Rows that are looked at for each sample wanted, and at least; a data set may hold terabytes.
ROWS_PER_SAMPLE, LEAST_ROWS = 16, 1024


def is_hub_dataset(source: str) -> bool:
    """Whether ``source`` is written like a data set of the Hub and not like a file."""
    return bool(_ID.match(source)) and not source.endswith(_FILES)


def read_hub_rows(source: str, samples: int) -> list[dict[str, Any]]:
    """The first rows of a data set, enough for ``samples`` windows; from the local cache while offline.

    Raises:
        UsageError: no such data set, or the Hub is out of reach.
    """
    name, *rest = source.split(":")
    config, split = (rest[0] if len(rest) == 2 else None), (rest[-1] if rest else "train")
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    try:
        with suppress_output():
            from datasets import load_dataset

            rows = load_dataset(name, config, split=split, streaming=not offline)
            return list(itertools.islice(rows, max(LEAST_ROWS, ROWS_PER_SAMPLE * samples)))
    except ImportError:
        raise UsageError(f"calibration data set {name}: `datasets` is not installed", "give a file") from None
    except (OSError, ValueError, RuntimeError) as err:
        if offline:
            reason = "not in the local cache while HF_HUB_OFFLINE is set"
        else:
            reason = (str(err).strip().splitlines() or [type(err).__name__])[0][:200]
        raise UsageError(
            f"calibration data set {source}: {reason}", "give a .txt, .json, .jsonl or .parquet file"
        ) from None
