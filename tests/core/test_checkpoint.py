"""Headers are validated before anything trusts them; each damage has its own line."""

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vllm_quant_plugin.checkpoint import INDEX_NAME, read_checkpoint, read_header
from vllm_quant_plugin.errors import CheckpointError

TENSORS = {"model.a.weight": torch.zeros(4, 8, dtype=torch.bfloat16), "model.a.bias": torch.zeros(4)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["X"]}))
    save_file(TENSORS, tmp_path / "model.safetensors")
    return tmp_path


def test_reads_what_safetensors_wrote(folder: Path) -> None:
    found = read_checkpoint(folder)
    assert {n: (t.dtype, t.shape, t.nbytes) for n, t in found.tensors.items()} == {
        "model.a.weight": ("BF16", (4, 8), 64),
        "model.a.bias": ("F32", (4,), 16),
    }
    assert found.nbytes == 80
    assert [(name, sorted(leaves)) for name, leaves in found.modules()] == [("model.a", ["bias", "weight"])]


def test_offsets_point_at_the_bytes(tmp_path: Path) -> None:
    values = torch.arange(6, dtype=torch.int32)
    save_file({"x": torch.zeros(3), "y": values}, tmp_path / "m.safetensors")
    info = read_header(tmp_path / "m.safetensors")["y"]
    raw = info.file.read_bytes()[info.start : info.start + info.nbytes]
    assert raw == values.numpy().tobytes()


def _header(path: Path, header: object, body: bytes = b"") -> None:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + body)


def _truncate(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])


DAMAGES = {
    "empty file": (lambda f: (f / "model.safetensors").write_bytes(b""), "truncated, 0 bytes"),
    "cut in the header": (lambda f: _truncate(f / "model.safetensors", 40), "truncated inside its header"),
    "cut in the data": (lambda f: _truncate(f / "model.safetensors", -8), "truncated at tensor model.a"),
    "not safetensors": (
        lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 64),
        "not a safetensors file",
    ),
    "header is no JSON": (lambda f: _header(f / "model.safetensors", b"{oops"), "header is no JSON"),
    "entry without shape": (
        lambda f: _header(f / "model.safetensors", {"w": {"dtype": "F32", "data_offsets": [0, 4]}}, b"0000"),
        "header entry of w is malformed",
    ),
    "shape against bytes": (
        lambda f: _header(
            f / "model.safetensors", {"w": {"dtype": "F32", "shape": [3], "data_offsets": [0, 4]}}, b"0000"
        ),
        "does not match its 4 bytes",
    ),
    "no config.json": (lambda f: (f / "config.json").unlink(), "no config.json"),
    "config.json is a list": (lambda f: (f / "config.json").write_text("[]"), "expected a JSON object"),
    "config.json cut": (lambda f: (f / "config.json").write_text("{"), "not readable as JSON"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"no \*.safetensors"),
    "pickle only": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        "only pickle weights",
    ),
    "index names a missing shard": (
        lambda f: (f / INDEX_NAME).write_text(json.dumps({"weight_map": {"model.a.bias": "other.safetensors"}})),
        "names other.safetensors, which is missing",
    ),
    "index lists an absent tensor": (
        lambda f: (f / INDEX_NAME).write_text(json.dumps({"weight_map": {"model.b": "model.safetensors"}})),
        "lists model.b",
    ),
    "index without a map": (lambda f: (f / INDEX_NAME).write_text("{}"), "has no weight_map"),
    "tensor in two files": (
        lambda f: save_file({"model.a.bias": torch.zeros(4)}, f / "extra.safetensors"),
        "model.a.bias is in both",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(folder: Path, damage: str) -> None:
    inflict, message = DAMAGES[damage]
    inflict(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_checkpoint(folder)
    assert caught.value.hint
    assert "\n" not in str(caught.value)


def test_missing_folder_and_file_for_folder(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        read_checkpoint(folder / "nothing")
    with pytest.raises(CheckpointError, match="not a folder"):
        read_checkpoint(folder / "config.json")


def test_config_alone_is_enough_when_asked(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert read_checkpoint(folder, need_tensors=False).tensors == {}
