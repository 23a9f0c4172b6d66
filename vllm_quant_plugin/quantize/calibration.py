"""Calibration windows: read the text, encode it, cut it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from vllm_quant_plugin.errors import UsageError
from vllm_quant_plugin.quantize.options import Calibration
from vllm_quant_plugin.text.documents import (
    CHARACTERS,
    Document,
    as_document,
    is_hub_dataset,
    read_documents,
    read_hub_rows,
)
from vllm_quant_plugin.text.windows import Tokenizer, cut_windows, encode_documents, pack_windows

SHIPPED = Path(__file__).with_name("data") / "calibration.txt"
FEW_SAMPLES = 32


@dataclass(frozen=True)
class Windows:
    """Encoded calibration data.

    Attributes:
        tokens: windows of equal length.
        sha256: of the token ids.
        documents: number of documents they were cut from.
        warnings: for the report.
    """

    tokens: list[list[int]]
    sha256: str
    documents: int
    warnings: tuple[str, ...]


def _from_hub(source: str, samples: int) -> list[Document]:
    rows = [as_document(row, f"{source}: row {i}") for i, row in enumerate(read_hub_rows(source, samples))]
    documents = [d for d in rows if not isinstance(d, str) or d.strip()]
    if not documents:
        raise UsageError(f"calibration data set {source}: holds no text", "give another, or a file")
    return documents


def _is_on_hub(source: str) -> bool:
    return is_hub_dataset(source) and not Path(source).exists()


def check_source(calibration: Calibration) -> None:
    """Refuse a calibration file that cannot be read or holds no text; a Hub data set is only opened during the run.

    Raises:
        UsageError: as ``load_windows``.
    """
    source = calibration.source
    if source and not _is_on_hub(source):
        read_documents(Path(source))


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
    encoded = encode_documents(tokenizer, documents)
    cut = pack_windows if calibration.packing else cut_windows
    windows = cut(encoded, calibration.samples, calibration.seq_len, calibration.seed)
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
        warnings.append(f"the text gives {len(windows)} samples of the {calibration.samples} requested")
    if len(windows) < FEW_SAMPLES:
        warnings.append(f"{len(windows)} calibration samples are few; {FEW_SAMPLES} or more give steadier results")
    digest = hashlib.sha256(json.dumps(windows).encode()).hexdigest()
    return Windows(windows, digest, len(documents), tuple(warnings))
