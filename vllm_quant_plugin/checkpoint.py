"""A model folder's config.json and safetensors headers, read and validated. No torch.

Only headers are read: opening a 100 GB checkpoint costs a few kilobytes of I/O.
File format: https://github.com/huggingface/safetensors#format
(8-byte little-endian header length, JSON header, then the tensors' bytes).
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from vllm_quant_plugin.errors import CheckpointError
from vllm_quant_plugin.json_file import read_json as read_json
from vllm_quant_plugin.side_config import read_side_config

DTYPE_BYTES: dict[str, float] = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I8": 1, "U8": 1, "BOOL": 1, "F4": 0.5,
}  # fmt: skip
MAX_HEADER_BYTES = 100_000_000
INDEX_NAME = "model.safetensors.index.json"
PICKLE_PATTERNS = ("*.bin", "*.pt", "*.pth")


Info = TypeVar("Info")


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a safetensors file: ``dtype`` as safetensors spells it, byte offsets in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    nbytes: int


@dataclass(frozen=True)
class Checkpoint:
    """A validated model folder.

    Attributes:
        path: the folder.
        config: config.json.
        tensors: every tensor by name; empty when the folder has a config only.
        side_config: what a file beside config.json says of the quantization, and that file's name.
    """

    path: Path
    config: dict[str, Any]
    tensors: dict[str, TensorInfo] = field(default_factory=dict)
    side_config: tuple[dict[str, Any], str] | None = None

    @property
    def text_config(self) -> dict[str, Any]:
        """The language model's part of a multimodal config, else the config itself."""
        for key in ("text_config", "llm_config", "language_config"):
            if isinstance(self.config.get(key), dict):
                return self.config[key]
        return self.config

    @property
    def quantization_config(self) -> dict[str, Any] | None:
        """What config.json says of the quantization, else a file beside it; None where nothing does."""
        return self._own_quantization or (self.side_config[0] if self.side_config else None)

    @property
    def side_file(self) -> str:
        """The name of the file that alone describes the quantization, "" where config.json does."""
        return self.side_config[1] if self.side_config and not self._own_quantization else ""

    @property
    def _own_quantization(self) -> dict[str, Any] | None:
        found = self.config.get("quantization_config") or self.text_config.get("quantization_config")
        return found or self.config.get("compression_config")

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors on disk."""
        return sum(t.nbytes for t in self.tensors.values())

    @property
    def files(self) -> list[Path]:
        """The safetensors files, sorted by name."""
        return sorted({t.file for t in self.tensors.values()})

    def modules(self) -> Iterator[tuple[str, dict[str, TensorInfo]]]:
        """Module name -> its tensors by their last name component, sorted by module name."""
        yield from by_module(self.tensors)


def by_module(tensors: Mapping[str, Info]) -> Iterator[tuple[str, dict[str, Info]]]:
    """Module name -> its tensors by their last name component, sorted by module name."""
    grouped: dict[str, dict[str, Info]] = {}
    for name, info in tensors.items():
        module, _, leaf = name.rpartition(".")
        grouped.setdefault(module, {})[leaf] = info
    yield from sorted(grouped.items())


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Tensors of one safetensors file, with every offset checked against the file's size.

    Raises:
        CheckpointError: missing, truncated, not safetensors, or an inconsistent header.
    """
    again = "copy or download the file again"
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            if len(prefix) < 8:
                raise CheckpointError(f"{path}: truncated, {size} bytes is no safetensors file", again)
            (length,) = struct.unpack("<Q", prefix)
            if length > MAX_HEADER_BYTES:
                raise CheckpointError(f"{path}: not a safetensors file (header length {length})", again)
            if 8 + length > size:
                raise CheckpointError(f"{path}: truncated inside its header ({size} of {8 + length} bytes)", again)
            raw = file.read(length)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file", again) from None
    except OSError as err:
        raise CheckpointError(f"{path}: {err.strerror or err}", "check the file's permissions") from None
    try:
        header = json.loads(raw)
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, AttributeError):
        raise CheckpointError(f"{path}: not a safetensors file (header is no JSON)", again) from None
    base, tensors = 8 + length, {}
    for name, entry in entries.items():
        try:
            dtype, shape = entry["dtype"], tuple(int(d) for d in entry["shape"])
            begin, end = (int(o) for o in entry["data_offsets"])
        except (KeyError, TypeError, ValueError):
            raise CheckpointError(f"{path}: header entry of {name} is malformed", again) from None
        if base + end > size:
            raise CheckpointError(f"{path}: truncated at tensor {name} ({size} of {base + end} bytes or more)", again)
        expected = math.ceil(math.prod(shape) * DTYPE_BYTES[dtype]) if dtype in DTYPE_BYTES else end - begin
        if begin < 0 or end - begin != expected:
            raise CheckpointError(f"{path}: {name} {dtype} {list(shape)} does not match its {end - begin} bytes", again)
        tensors[name] = TensorInfo(name, dtype, shape, path, base + begin, end - begin)
    return tensors


def read_tensors(folder: Path) -> dict[str, TensorInfo]:
    """Headers of every tensor of a folder's safetensors files; empty where it has none.

    Raises:
        CheckpointError: a damaged or missing file, or two of the same tensor.
    """
    index = folder / INDEX_NAME
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise CheckpointError(f"{index}: has no weight_map", "copy or download the file again")
        tensors: dict[str, TensorInfo] = {}
        for name in sorted(set(weight_map.values())):
            shard = folder / name
            if not shard.exists():
                raise CheckpointError(f"{folder}: {INDEX_NAME} names {name}, which is missing", "download the shard")
            tensors.update(read_header(shard))
        absent = sorted(set(weight_map) - set(tensors))
        if absent:
            raise CheckpointError(
                f"{folder}: {INDEX_NAME} lists {absent[0]} (and {len(absent) - 1} more), found in no shard",
                "download the shards and the index of one and the same revision",
            )
        return tensors
    tensors = {}
    for shard in _whole_files(folder):
        for name, info in read_header(shard).items():
            if name in tensors:
                raise CheckpointError(f"{folder}: {name} is in both {tensors[name].file.name} and {shard.name}",
                                      f"keep one of the files, or add {INDEX_NAME}")  # fmt: skip
            tensors[name] = info
    return tensors


def _whole_files(folder: Path) -> list[Path]:
    """The files of a checkpoint without an index.

    Mistral's own ``consolidated*.safetensors`` beside files in transformers' naming hold the same weights once more:
    vLLM loads one of the two, and the config's names are transformers'.
    """
    files = sorted(folder.glob("*.safetensors"))
    return [file for file in files if not file.name.startswith("consolidated")] or files


def read_checkpoint(folder: str | Path, *, need_tensors: bool = True) -> Checkpoint:
    """Read and validate a model folder.

    Args:
        folder: holds config.json and ``*.safetensors`` (single, sharded with an index, or without).
        need_tensors: False accepts a folder with config.json alone.

    Raises:
        CheckpointError: missing folder or config.json, pickle-only weights, damaged files.
    """
    folder = Path(folder)
    if not folder.exists():
        raise CheckpointError(f"{folder}: no such folder", "give a model folder, or a Hub id such as org/name")
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: not a folder", "give the folder that holds config.json")
    if not (folder / "config.json").exists():
        raise CheckpointError(f"{folder}: no config.json", "give the folder that holds the model's config.json")
    config = read_json(folder / "config.json")
    tensors = read_tensors(folder)
    if need_tensors and not tensors:
        if any(next(folder.glob(pattern), None) for pattern in PICKLE_PATTERNS):
            raise CheckpointError(
                f"{folder}: only pickle weights (.bin/.pt), which can run code when loaded",
                "convert them to safetensors, e.g. with transformers' save_pretrained",
            )
        raise CheckpointError(f"{folder}: no *.safetensors file", "download the weights")
    return Checkpoint(folder, config, tensors, read_side_config(folder))
