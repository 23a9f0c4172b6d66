"""A format, a kernel and an algorithm from outside the package, one file each, with every command.

No file of the package knows their names; what runs here is what somebody else's three files get.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.extension import toy_algorithm, toy_format, toy_kernel
from tests.quantize.conftest import short_text, small_model
from tests.support.engines import Answer, ask
from tests.support.oracle import DEPTH, EPS, differences
from tests.support.reference_model import ReferenceModel
from vllm_quant_kernels import registry as kernels
from vllm_quant_kernels.kernel import Kernel
from vllm_quant_plugin import plugin
from vllm_quant_plugin.checkpoint import read_checkpoint
from vllm_quant_plugin.cli import main
from vllm_quant_plugin.formats.base import Format
from vllm_quant_plugin.formats.registry import register_format, unregister_format
from vllm_quant_plugin.quantize.algorithm import Algorithm, register_algorithm, unregister_algorithm
from vllm_quant_plugin.quantize.reproduce import reproduce_model
from vllm_quant_serve.metrics.accounting import model_size

__all__ = ["short_text", "small_model"]

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MODULES = 2 * 7
QUANTIZE = [
    "-m", "toy", "--clip-steps", "2", "--calibration-samples", "2", "--seq-len", "32", "--no-eval", "--json",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def toys() -> Iterator[None]:
    register_format(toy_format.FORMAT)
    kernels.register(toy_kernel.KERNEL)
    register_algorithm(toy_algorithm.ALGORITHM)
    plugin.register()
    yield
    unregister_algorithm("toy")
    kernels.unregister("toy-w4a16")
    unregister_format("toy")


def run(*arguments: str | Path) -> Any:
    """What ``vllm-quant`` prints as JSON."""
    printed = io.StringIO()
    with redirect_stdout(printed), pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    assert caught.value.code == 0
    return json.loads(printed.getvalue())


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def dequantized(folder: Path) -> dict[str, torch.Tensor]:
    """Dense weights by checkpoint name: the toy format read by hand."""
    found = tensors(folder)
    for name in [name for name in found if name.endswith(".nibbles")]:
        module, nibbles = name.removesuffix(".nibbles"), found.pop(name)
        steps = found.pop(f"{module}.steps").double()
        weight = torch.empty(nibbles.shape[0], 2 * nibbles.shape[1], dtype=torch.float64)
        weight[:, 0::2] = (nibbles % 16).double() - 8
        weight[:, 1::2] = torch.div(nibbles, 16, rounding_mode="floor").double() - 8
        found[f"{module}.weight"] = (weight.unflatten(1, (-1, 32)) * steps.unsqueeze(-1)).flatten(1)
    return found


@pytest.fixture(scope="module")
def quantized(small_model: Path, short_text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("toy") / "out"
    flags = [*QUANTIZE, "--calibration", short_text]
    expected = run("quantize", small_model, "-o", out, "--dry-run", *flags)
    report = run("quantize", small_model, "-o", out, *flags)
    assert report["recipe"]["options"] == {"clip_steps": 2}
    assert report["bytes_after"] == expected["bytes_after"] == read_checkpoint(out).nbytes
    return out


def test_quantize(quantized: Path, small_model: Path) -> None:
    config = json.loads((quantized / "config.json").read_text())
    assert config["quantization_config"] == {"quant_method": "toy", "group": 32, "keep": ["lm_head"]}
    assert len([name for name in tensors(quantized) if name.endswith(".nibbles")]) == MODULES
    assert "2 clipping factors" in (quantized / "README.md").read_text()
    before, after = tensors(small_model), dequantized(quantized)
    assert before.keys() == after.keys()
    for name, weight in before.items():
        # 16 steps from the smallest to the largest weight of a group.
        assert (after[name] - weight).norm() / weight.norm() < 0.15, name
    assert reproduce_model(quantized).identical


def test_inspect(quantized: Path) -> None:
    found = run("inspect", quantized, "--device", "cpu", "--json")
    assert (found["quant_method"], found["plugin_method"], found["automatic"]) == ("toy", "vqp_toy", True)
    served = [(m["scheme"], m["kernel"]) for m in found["modules"] if m["scheme"]]
    assert served == [("INT4 g32 sym", "toy W4A16")] * MODULES


def test_plan(quantized: Path) -> None:
    """On a CPU the plugin serves the model, and the toy kernel keeps the weights as the toy format stores them."""
    config = json.loads((quantized / "config.json").read_text())
    rotary = 2 * config["max_position_embeddings"] * config["head_dim"]
    found = run("plan", quantized, "--cpu-memory", "8GiB", "--json")
    assert found["weight_bytes_per_rank"] == read_checkpoint(quantized).nbytes + rotary


def test_metrics_count_the_weights(quantized: Path, small_model: Path) -> None:
    before, after = model_size(read_checkpoint(small_model), None), model_size(read_checkpoint(quantized), 4)
    assert before is not None
    assert after == before


def test_convert_there_and_back(quantized: Path, tmp_path: Path) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    report = run("convert", quantized, "--to", "compressed-tensors", "-o", there, "--json")
    assert (report["method_before"], report["modules"]) == ("toy", MODULES)
    run("convert", there, "--to", "toy", "-o", back, "--json")
    first, second = tensors(quantized), tensors(back)
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    configs = [json.loads((folder / "config.json").read_text()) for folder in (quantized, back)]
    assert configs[0] == configs[1]


@pytest.mark.engine
def test_serve(quantized: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM takes the checkpoint without a flag, and its logits are those of the dequantized weights."""
    calls = 0
    apply = toy_kernel.ToyKernel.apply

    def counted(*args: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return apply(*args)

    monkeypatch.setattr(toy_kernel.ToyKernel, "apply", counted)
    got = ask(quantized)
    # q, k, v and gate, up are fused: four GEMMs per layer.
    assert calls
    assert calls % (2 * 4) == 0
    config = json.loads((quantized / "config.json").read_text())
    config["rope_theta"] = config["rope_parameters"]["rope_theta"]
    reference = ReferenceModel(config, dequantized(quantized))
    expected = Answer(got.tokens, [reference.logits(sequence).float() for sequence in got.sequences()])
    # As tests/support/oracle.py derives it, with this model's largest K.
    tolerance = 4 * math.sqrt(DEPTH) * EPS * math.sqrt(config["intermediate_size"]) * expected.scale()
    assert float(differences(got, expected).max()) <= tolerance


def test_entry_points(tmp_path: Path) -> None:
    """An installed package needs no call: its entry points lead to the objects."""
    for module in (toy_format, toy_kernel, toy_algorithm):
        shutil.copy(module.__file__, tmp_path)
    metadata = tmp_path / "toys-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[vllm_quant_plugin.formats]\ntoy = toy_format:FORMAT\n"
        "[vllm_quant_kernels.kernels]\ntoy = toy_kernel:KERNEL\n"
        "[vllm_quant_plugin.algorithms]\ntoy = toy_algorithm:ALGORITHM\n"
    )
    code = (
        "from vllm_quant_kernels.registry import kernels\n"
        "from vllm_quant_plugin.convert.api import targets\n"
        "from vllm_quant_plugin.plugin import register\n"
        "from vllm_quant_plugin.quantize.algorithm import algorithms\n"
        "register()\n"
        "from vllm.model_executor.layers.quantization import get_quantization_config\n"
        "print('toy' in targets(), kernels()[0].name, algorithms()[-1].name)\n"
        "print(get_quantization_config('vqp_toy').__name__)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[-4:] == ["True", "toy-w4a16", "toy", "VqpToyConfig"]


def test_names_are_taken_once_and_begin_with_vqp() -> None:
    class Other(toy_format.ToyFormat):
        name = "other"
        vllm_methods = ("gguf",)

    with pytest.raises(ValueError, match="'toy' is registered already"):
        register_format(toy_format.ToyFormat())
    with pytest.raises(ValueError, match="does not begin with 'vqp_'"):
        register_format(Other())


def test_no_file_of_the_package_knows_them() -> None:
    folders = (ROOT / name for name in ("vllm_quant_plugin", "kernels/vllm_quant_kernels", "serve/vllm_quant_serve"))
    files = [file for folder in folders for file in folder.rglob("*.py")]
    assert len(files) > 100
    assert [file for file in files if re.search(r"\b(vqp_)?toy\b", file.read_text("utf-8"), re.IGNORECASE)] == []


def test_the_page_quotes_the_files() -> None:
    page = (ROOT / "docs/internals/adding.md").read_text("utf-8")
    quoted = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    files = [(HERE / f"toy_{name}.py").read_text("utf-8") for name in ("format", "kernel", "algorithm")]
    assert quoted == files, "copy tests/extension/toy_*.py into the page"


@pytest.mark.parametrize("base", [Format, Kernel, Algorithm])
def test_the_page_explains_what_there_is_to_answer(base: type[Any]) -> None:
    page = (ROOT / "docs/internals/adding.md").read_text("utf-8")
    assert [name for name in base.__abstractmethods__ | base.__annotations__.keys() if f"`{name}`" not in page] == []
