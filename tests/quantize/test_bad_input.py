"""What can be wrong with the input: one line, how to fix it, an exit code, no traceback, nothing left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vllm_quant_plugin.cli import main


def _edit_config(folder: Path, **fields: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))


def _truncate(folder: Path) -> None:
    shard = folder / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])


def _poison(folder: Path) -> None:
    shard = folder / "model-00001-of-00002.safetensors"
    tensors = load_file(shard)
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(tensors, shard, metadata={"format": "pt"})


def _pickle_only(folder: Path) -> None:
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"x")


def _no_linears(folder: Path) -> None:
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    save_file({"model.embed_tokens.weight": torch.ones(4, 4)}, folder / "model.safetensors")


def _nothing(folder: Path) -> None:
    """The model is sound; the flags are not."""


CASES: list[tuple[str, Callable[[Path], object], list[str], int, str]] = [
    ("no folder", shutil.rmtree, [], 6, "no such folder"),
    ("no config.json", lambda f: (f / "config.json").unlink(), [], 6, "no config.json"),
    ("config.json is no JSON", lambda f: (f / "config.json").write_text("{"), [], 6, "not readable as JSON"),
    ("truncated file", _truncate, [], 6, "truncated"),
    ("missing shard", lambda f: (f / "model-00002-of-00002.safetensors").unlink(), [], 6, "missing"),
    ("pickle only", _pickle_only, [], 6, "pickle"),
    ("no decoder layers", _no_linears, [], 6, "no linear weights"),
    ("quantized already", lambda f: _edit_config(f, quantization_config={"quant_method": "awq"}), [], 6, "already"),
    ("NaN in a weight", _poison, ["-m", "int8"], 6, "NaN"),
    ("no tokenizer", lambda f: (f / "tokenizer.json").unlink(), ["-m", "awq"], 6, "tokenizer"),
    ("unknown method", _nothing, ["-m", "nf4"], 2, "nf4"),
    ("1 bit", _nothing, ["-m", "awq", "--bits", "1"], 2, "1 bits"),
    ("9 bits", _nothing, ["-m", "gptq", "--bits", "9"], 2, "9 bits"),
    ("group does not divide", _nothing, ["-m", "gptq", "--group-size", "96"], 2, "does not divide"),
    ("unknown level", _nothing, ["--level", "tiny"], 2, "tiny"),
    ("no calibration samples", _nothing, ["-m", "awq", "--calibration-samples", "0"], 2, "at least 1 sample"),
    ("level and target", _nothing, ["-m", "rtn", "--level", "4bit", "--target-bpw", "3.5"], 2, "--level and a target"),
    ("no calibration file", _nothing, ["-m", "awq", "--calibration", "/nowhere.txt"], 2, "no such file"),
    ("Hub id while offline", shutil.rmtree, ["HUB"], 6, "HF_HUB_OFFLINE"),
]


@pytest.mark.parametrize(("name", "spoil", "flags", "code", "said"), CASES, ids=[case[0] for case in CASES])
def test_one_line_and_an_exit_code(
    name: str, spoil: Callable[[Path], object], flags: list[str], code: int, said: str,
    small_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = shutil.copytree(small_model, tmp_path / "in")
    spoil(folder)
    words = [str(folder), *flags]
    if flags == ["HUB"]:
        words = ["some-org/some-model"]
    with pytest.raises(SystemExit) as caught:
        main(["quantize", *words, "-o", str(tmp_path / "out")])
    error = capfd.readouterr().err
    assert caught.value.code == code
    assert said in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "; " in error
    assert not list(tmp_path.glob(".out*")) + list(tmp_path.glob("out"))


@pytest.mark.parametrize(
    ("output", "said"),
    [("in", "output is the input"), ("folder", "not a model folder"), ("file", "not a model folder")],
)
def test_outputs_that_must_not_be_replaced(
    output: str, said: str, small_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(small_model, tmp_path / "in")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "precious.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    with pytest.raises(SystemExit) as caught:
        main(["quantize", str(folder), "-m", "int8", "-o", str(tmp_path / output), "--overwrite"])
    assert caught.value.code == 8
    assert said in capfd.readouterr().err
    assert (tmp_path / "folder" / "precious.txt").exists()


def test_json_carries_the_error_too(small_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["quantize", str(small_model), "-m", "nf4", "-o", str(tmp_path / "out"), "--json"])
    assert json.loads(capfd.readouterr().out)["error"]["exit_code"] == 2
