"""What can be wrong with a model or a machine: one line, how to mend it, an exit code, no traceback.

Quantizing has a table of its own, tests/quantize/test_bad_input.py; what only the loader sees is in
tests/methods/test_damaged.py.
"""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.quantized_checkpoints import write_checkpoint
from tests.support.recipes import gptq
from tests.support.tiny_models import tiny_model
from vllm_quant_plugin.checkpoint import INDEX_NAME
from vllm_quant_plugin.cli import main

FILE = "model.safetensors"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound GPTQ checkpoint."""
    return write_checkpoint(tmp_path_factory.mktemp("sound"), tiny_model("llama"), gptq(4, 128)).folder


def _quantization(**fields: object) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"].update(fields)
        (folder / "config.json").write_text(json.dumps(config))

    return edit


def _truncate(folder: Path) -> None:
    data = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(data[: len(data) // 2])


def _missing_shard(folder: Path) -> None:
    index = {"weight_map": {"lm_head.weight": FILE, "model.norm.weight": "model-00002-of-00002.safetensors"}}
    (folder / INDEX_NAME).write_text(json.dumps(index))


def _pickle_only(folder: Path) -> None:
    (folder / FILE).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")


# what is wrong, how it is brought about, a part of the message, a part of the hint
DAMAGE: list[tuple[str, Callable[[Path], object], str, str]] = [
    ("missing folder", shutil.rmtree, "no such folder", "give a model folder"),
    ("no config.json", lambda f: (f / "config.json").unlink(), "no config.json", "give the folder"),
    ("config.json is no JSON", lambda f: (f / "config.json").write_text("{"), "not readable as JSON", "again"),
    ("config.json is a list", lambda f: (f / "config.json").write_text("[]"), "expected a JSON object", "again"),
    ("truncated safetensors", _truncate, "truncated", "again"),
    ("not safetensors", lambda f: (f / FILE).write_bytes(b"\xff" * 64), "not a safetensors file", "again"),
    ("missing shard", _missing_shard, "which is missing", "download the shard"),
    ("pickle only", _pickle_only, "only pickle weights", "convert them to safetensors"),
    ("no weights", lambda f: (f / FILE).unlink(), "no *.safetensors file", "download"),
    ("unknown quant_method", _quantization(quant_method="frobnicate"), "frobnicate", ""),
    ("1 bit", _quantization(bits=1), "GPTQ with 1 bits is not supported", "2, 3, 4, 8"),
    ("9 bits", _quantization(bits=9), "GPTQ with 9 bits is not supported", "2, 3, 4, 8"),
    ("3-bit AWQ", _quantization(quant_method="awq", bits=3), "AWQ with 3 bits", "compressed-tensors"),
    ("group size 0", _quantization(group_size=0), "group_size 0 is impossible", "-1"),
    ("bits is a string", _quantization(bits="four"), "bits must be an integer", "fix config.json"),
]


# Planning needs config.json alone: a model without weights can be planned.
WITHOUT_WEIGHTS = ("pickle only", "no weights")
RUNS = [
    pytest.param(command, *row, id=f"{command.split()[0]}-{row[0]}")
    for command in ("inspect", "plan --gpu h100", "serve --dry-run")
    for row in DAMAGE
    if command == "inspect" or row[0] not in WITHOUT_WEIGHTS
]


@pytest.mark.parametrize(("command", "what", "damage", "message", "hint"), RUNS)
def test_damaged_model(
    command: str,
    what: str,
    damage: Callable[[Path], object],
    message: str,
    hint: str,
    sound: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(sound, folder)
    damage(folder)
    assert_one_line([*command.split(), str(folder)], 6, message, hint, capsys)


def assert_one_line(argv: list[str], code: int, message: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    """``vllm-quant argv`` leaves with ``code`` and one line on stderr that has ``message`` and ``hint``."""
    with pytest.raises(SystemExit) as stop:
        main(argv)
    lines = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == code
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert hint in lines[0]


def test_not_enough_memory(sound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_one_line(["plan", str(sound), "--gpu-memory", "256MiB"], 3, "does not fit", "fewer bits", capsys)


def test_port_in_use(sound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with pytest.raises(SystemExit) as stop:
            main(["serve", str(sound), "--port", port, "--max-model-len", "64"])
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 4
    assert last.startswith("error: ")
    assert port in last
