"""The streaming writer against the safetensors library."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vllm_quant_plugin.checkpoint import read_checkpoint, read_header
from vllm_quant_plugin.quantize.io.shards import ModelWriter, ShardWriter

TENSORS = {
    "a": torch.arange(6, dtype=torch.int32).reshape(2, 3),
    "b": torch.randn(5, 7, dtype=torch.bfloat16),
    "c": torch.tensor(1.5),
    "d": torch.randn(3, 3).to(torch.float8_e4m3fn),
    "e": torch.zeros(0, 4),
    "f": torch.tensor([1, -2], dtype=torch.int64),
    "g": torch.randn(4, 6).t(),
    "h": torch.tensor([3], dtype=torch.int8),
}


def _write(path: Path, order: list[str]) -> bytes:
    writer = ShardWriter(path)
    for name in order:
        writer.add(name, TENSORS[name])
    writer.close()
    return path.read_bytes()


def test_library_reads_what_is_written(tmp_path: Path) -> None:
    _write(tmp_path / "x.safetensors", list(TENSORS))
    found = load_file(tmp_path / "x.safetensors")
    assert set(found) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert torch.equal(found[name].double(), tensor.double())
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_every_tensor_is_aligned_to_its_element(tmp_path: Path) -> None:
    _write(tmp_path / "x.safetensors", list(TENSORS))
    for name, info in read_header(tmp_path / "x.safetensors").items():
        assert info.start % TENSORS[name].element_size() == 0


def test_bytes_do_not_depend_on_the_order_of_writing(tmp_path: Path) -> None:
    assert _write(tmp_path / "x", list(TENSORS)) == _write(tmp_path / "y", list(reversed(TENSORS)))


def test_shards_mirror_the_input(tmp_path: Path, small_model: Path) -> None:
    checkpoint = read_checkpoint(small_model)
    writer = ModelWriter(tmp_path, checkpoint)
    writer.add("model.layers.0.mlp.up_proj.qweight", torch.ones(2))
    writer.add("model.layers.1.mlp.up_proj.qweight", torch.ones(3))
    writer.add("model.norm.weight", torch.ones(4))
    writer.close()
    (tmp_path / "config.json").write_text("{}")
    made = read_checkpoint(tmp_path)
    assert {n: t.file.name for n, t in made.tensors.items()} == {
        "model.layers.0.mlp.up_proj.qweight": "model-00001-of-00002.safetensors",
        "model.layers.1.mlp.up_proj.qweight": "model-00002-of-00002.safetensors",
        "model.norm.weight": "model-00002-of-00002.safetensors",
    }


@pytest.mark.parametrize("name", ["model.safetensors", "odd-name.safetensors"])
def test_a_single_file_becomes_model_safetensors(tmp_path: Path, name: str) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / "config.json").write_text("{}")
    writer = ShardWriter(source / name)
    writer.add("x.weight", torch.ones(2, 2))
    writer.close()
    model = ModelWriter(tmp_path, read_checkpoint(source))
    model.add("x.weight", torch.ones(2, 2))
    model.close()
    assert (tmp_path / "model.safetensors").exists()
    assert not (tmp_path / "model.safetensors.index.json").exists()
