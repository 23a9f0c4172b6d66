"""Reading tensors one at a time and writing safetensors files without holding them in memory.

A shard grows as a spool of raw bytes; when it is closed the header goes before them. Peak memory is
the largest single tensor, whatever the size of the model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from vllm_quant_plugin.checkpoint import INDEX_NAME, Checkpoint, write_json

_NAMES: dict[torch.dtype, str] = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip
# Dtypes of the weights that are quantized, by their names in safetensors.
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
_COPY_CHUNK = 16 << 20


def read_tensor(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    """One tensor of the checkpoint, in its own memory."""
    with safe_open(str(checkpoint.tensors[name].file), framework="pt") as file:
        return file.get_tensor(name)


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The little-endian bytes of a tensor in row-major order."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def _header(entries: Mapping[str, tuple[torch.dtype, tuple[int, ...], int]]) -> tuple[bytes, list[str]]:
    """The beginning of a safetensors file, and the order of its tensors: widest dtypes first, so that each is aligned.

    Args:
        entries: dtype, shape and bytes by name.
    """
    order = sorted(entries, key=lambda n: (-entries[n][0].itemsize, n))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in order:
        dtype, shape, size = entries[name]
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw, order


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], *, sync: bool = True) -> None:
    """Write tensors that are all in memory as one safetensors file; with ``sync`` it is on disk afterwards.

    The safetensors library reports a refused write as an error of its own; here it is what the system says.

    Raises:
        OSError: a write is refused.
    """
    begin, order = _header({n: (t.dtype, tuple(t.shape), t.numel() * t.element_size()) for n, t in tensors.items()})
    with path.open("wb") as out:
        out.write(begin)
        for name in order:
            out.write(tensor_bytes(tensors[name]))
        out.flush()
        if sync:
            os.fsync(out.fileno())


class ShardWriter:
    """Writes one safetensors file, tensor by tensor.

    The file's layout depends on the names, dtypes and shapes alone, not on the order of ``add``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._spool = path.with_name(path.name + ".spool")
        self._file = self._spool.open("wb")
        self._entries: dict[str, tuple[torch.dtype, tuple[int, ...], int, int]] = {}

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Append a tensor; its memory is free afterwards."""
        data = tensor_bytes(tensor)
        self._entries[name] = (tensor.dtype, tuple(tensor.shape), self._file.tell(), len(data))
        self._file.write(data)

    def close(self) -> None:
        """Finish the file: header first, then the tensors."""
        self._file.close()
        begin, order = _header({n: (dtype, shape, size) for n, (dtype, shape, _, size) in self._entries.items()})
        with self.path.open("wb") as out, self._spool.open("rb") as spool:
            out.write(begin)
            for name in order:
                _, _, start, size = self._entries[name]
                spool.seek(start)
                while size:
                    chunk = spool.read(min(size, _COPY_CHUNK))
                    out.write(chunk)
                    size -= len(chunk)
            out.flush()
            os.fsync(out.fileno())
        self._spool.unlink()


class ModelWriter:
    """Writes a model's tensors into shards that mirror the input's files.

    Args:
        folder: where the files go.
        checkpoint: the input; a tensor goes into the shard that its module's tensors came from.
    """

    def __init__(self, folder: Path, checkpoint: Checkpoint) -> None:
        self._folder = folder
        files = [file.name for file in checkpoint.files]
        self._sharded = len(files) > 1
        self._renamed = dict(zip(files, self._file_names(len(files)), strict=True))
        self._home: dict[str, str] = {}
        for name, info in checkpoint.tensors.items():
            self._home[name] = self._renamed[info.file.name]
            self._home.setdefault(name.rpartition(".")[0], self._renamed[info.file.name])
        self._default = next(reversed(self._renamed.values()))
        self._writers: dict[str, ShardWriter] = {}
        self.weight_map: dict[str, str] = {}
        self.nbytes = 0

    @staticmethod
    def _file_names(count: int) -> list[str]:
        if count == 1:
            return ["model.safetensors"]
        return [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Write one tensor into its shard."""
        home = self._home.get(name) or self._home.get(name.rpartition(".")[0], self._default)
        if home not in self._writers:
            self._writers[home] = ShardWriter(self._folder / home)
        self._writers[home].add(name, tensor)
        self.weight_map[name] = home
        self.nbytes += tensor.numel() * tensor.element_size()

    def add_module(self, module: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Write a module's tensors, given by their last name component."""
        for leaf, tensor in sorted(tensors.items()):
            self.add(f"{module}.{leaf}", tensor)

    def close(self) -> None:
        """Close every shard and write the index when there are several."""
        while self._writers:
            self._writers.popitem()[1].close()
        if self._sharded:
            index = {"metadata": {"total_size": self.nbytes}, "weight_map": dict(sorted(self.weight_map.items()))}
            write_json(self._folder / INDEX_NAME, index)
