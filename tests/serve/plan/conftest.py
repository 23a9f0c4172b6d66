"""Model folders made of a real config.json and, where asked for, a sparse safetensors file of the real shapes."""

import json
import struct
from pathlib import Path

import pytest

CONFIGS = Path(__file__).parent / "configs"
BUNDLED = Path(__file__).parents[3] / "vllm_quant_plugin" / "data" / "stdlib-llama"
ITEMSIZE = {"BF16": 2, "F16": 2, "F32": 4, "I32": 4, "F8_E4M3": 1, "U8": 1}


def load_config(name: str) -> dict:
    return json.loads((CONFIGS / f"{name}.json").read_text())


def write_sparse_safetensors(path: Path, tensors: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    """A valid safetensors file whose data is a hole: gigabytes of shapes, kilobytes on disk."""
    header, offset = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = ITEMSIZE[dtype]
        for dim in shape:
            size *= dim
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    raw = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + offset)


@pytest.fixture(autouse=True)
def no_ledger(tmp_path, monkeypatch):
    """Launches recorded on this machine do not change what the tests expect."""
    monkeypatch.setenv("VQP_LEDGER", str(tmp_path / "none" / "launches.sqlite"))


@pytest.fixture
def model_folder(tmp_path):
    """Factory: a folder with the named config, changed by ``overrides``, and the given tensors."""

    def make(name: str, tensors=None, **overrides) -> str:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        config = {**load_config(name), **overrides}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "model.safetensors").unlink(missing_ok=True)
        if tensors:
            write_sparse_safetensors(folder / "model.safetensors", tensors)
        return str(folder)

    return make
