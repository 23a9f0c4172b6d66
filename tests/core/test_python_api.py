"""The typed calls, from a folder, a hub id and a model in memory; and the example that uses them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.quantize.conftest import small_model
from vllm_quant_plugin.api import convert, evaluate, quantize
from vllm_quant_plugin.errors import CheckpointError, UsageError
from vllm_quant_plugin.quantize.api import make_recipe
from vllm_quant_plugin.quantize.io.report import hash_tensor_files

__all__ = ["small_model"]
ROOT = Path(__file__).parents[2]


def test_a_folder_and_a_model_in_memory_give_the_same(small_model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(small_model, dtype="auto")
    from_folder = quantize(small_model, tmp_path / "folder", "rtn", level="4bit-32g")
    from_memory = quantize(model, tmp_path / "memory", make_recipe("rtn", level="4bit-32g"))
    assert from_memory.model == str(small_model)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "memory"]
    tensors = [
        {name: t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}
        for folder in (tmp_path / "folder", tmp_path / "memory")
    ]
    assert set(tensors[0]) == set(tensors[1])
    assert all(torch.equal(tensor, tensors[1][name]) for name, tensor in tensors[0].items())
    assert (tmp_path / "memory" / "tokenizer.json").exists()
    assert from_folder.modules == from_memory.modules
    report = convert(tmp_path / "memory", tmp_path / "gptq", "gptq")
    assert hash_tensor_files(tmp_path / "gptq") == report.files


@pytest.mark.parametrize("call", [lambda m, o: quantize(m, o), lambda m, o: convert(m, o, "gptq")])
def test_a_hub_id_while_offline_and_a_thing_that_is_no_model(call, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE"):
        call("some-org/some-model", tmp_path / "out")
    with pytest.raises(UsageError, match="type dict"):
        call({}, tmp_path / "out")
    with pytest.raises(UsageError, match="type dict"):
        evaluate({})
    assert not list(tmp_path.iterdir())


@pytest.mark.engine
def test_the_example_runs(small_model: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / "quantize_convert_evaluate.py"), str(small_model), str(tmp_path)]
    command += ["--method", "rtn", "--to", "gptq", "--windows", "2"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "converted: 14 modules from compressed-tensors to gptq" in done.stdout
    for text in ("heldout-code.txt", "heldout-prose.txt"):
        assert f"{text}: perplexity " in done.stdout
        assert f"{text}: mean KL from the original " in done.stdout
    record = json.loads((tmp_path / "quantized" / "quantization.json").read_text())
    assert record["model"] == str(small_model)


def test_the_example_reports_an_error_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / "quantize_then_serve.py"), str(tmp_path), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == CheckpointError.exit_code
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
