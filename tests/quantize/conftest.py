"""A small model with real weights and a tokenizer: the bundled one cut to two layers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from vllm_quant_plugin.quantize.calibration import SHIPPED
from vllm_quant_plugin.text.windows import BUNDLED

LAYERS = 2


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See ``write_small_model``."""
    return write_small_model(tmp_path_factory.mktemp("small-model"))


def write_small_model(folder: Path) -> Path:
    """Two layers of the bundled model, sharded over two files."""
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(BUNDLED / name, folder / name)
    config = json.loads((BUNDLED / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": LAYERS}))
    tensors = load_file(BUNDLED / "model.safetensors")
    shards = ({}, {})
    for name, tensor in tensors.items():
        part = name.split(".")
        if part[1] != "layers":
            shards[1][name] = tensor
        elif int(part[2]) < LAYERS:
            shards[int(part[2])][name] = tensor
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, folder / name, metadata={"format": "pt"})
    weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


@pytest.fixture(scope="session")
def short_text(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The beginning of the shipped text: encoding all of it takes longer than quantizing a small model."""
    path = tmp_path_factory.mktemp("text") / "short.txt"
    path.write_text(SHIPPED.read_text("utf-8")[:60_000], "utf-8")
    return str(path)
