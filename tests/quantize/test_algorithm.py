"""An algorithm from outside the package: the command, recipe files, dry run, ``reproduce`` and the card know it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch
import typer

from vllm_quant_kernels.canonical import CanonicalWeight
from vllm_quant_kernels.scheme import Int
from vllm_quant_plugin.checkpoint import read_checkpoint
from vllm_quant_plugin.cli import main
from vllm_quant_plugin.errors import UsageError
from vllm_quant_plugin.formats.compressed_tensors import PACK_QUANTIZED
from vllm_quant_plugin.quantize.algorithm import (
    Algorithm,
    Cost,
    LayerTask,
    SolvedLayer,
    register_algorithm,
    unregister_algorithm,
)
from vllm_quant_plugin.quantize.api import make_recipe, preflight, quantize_model
from vllm_quant_plugin.quantize.estimate.speed import Speed, SpeedRange
from vllm_quant_plugin.quantize.modules import Linear
from vllm_quant_plugin.quantize.options import SchemeRequest
from vllm_quant_plugin.quantize.reproduce import reproduce_model
from vllm_quant_plugin.rtn import quantize_int
from vllm_quant_plugin.schemes import StoredScheme


@dataclass(frozen=True)
class ToyOptions:
    shrink: Annotated[float, typer.Option(help="factor on every weight")] = 1.0

    def __post_init__(self) -> None:
        if self.shrink <= 0:
            raise UsageError(f"shrink {self.shrink} is out of range", "it is positive")


class Toy(Algorithm):
    """Shrinks, then rounds."""

    name = "toy"
    bits = (3, 4)
    options = ToyOptions

    def scheme(self, request: SchemeRequest) -> StoredScheme:
        bits, group_size = self.integer_weights(request, group_size=64)
        return StoredScheme(Int(bits), group_size, storage=PACK_QUANTIZED)

    def cost(self, layer: Sequence[Linear], tokens: int, options: ToyOptions) -> Cost:
        return Cost(seconds=1000.0)

    def describe(self, options: ToyOptions) -> str:
        return f"shrunk to {options.shrink}"

    def solve(self, task: LayerTask) -> SolvedLayer:
        solved = SolvedLayer()
        for name, scheme in task.schemes.items():
            weight = task.layer.get_submodule(name).weight.data * task.options.shrink
            solved.weights[name] = quantize_int(weight, scheme.bits, scheme.group_size, scale_dtype=task.dtype)
        return solved

    def round_weight(self, weight: torch.Tensor, scheme: StoredScheme, peak: float | None = None) -> CanonicalWeight:
        raise AssertionError("it needs data")


@pytest.fixture
def toy() -> Iterator[Toy]:
    found = Toy()
    register_algorithm(found)
    yield found
    unregister_algorithm("toy")


def test_everything_knows_it(
    toy: Toy, small_model: Path, short_text: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe_file = tmp_path / "recipe.yaml"
    recipe_file.write_text("method: toy\nlayers.0: 3\n")
    out = tmp_path / "out"
    flags = [
        "--recipe", str(recipe_file), "--shrink", "0.5", "--calibration", short_text, "--calibration-samples", "2",
        "--seq-len", "32", "--no-eval", "--json",
    ]  # fmt: skip
    with pytest.raises(SystemExit) as caught:
        main(["quantize", str(small_model), "-o", str(out), "--dry-run", *flags])
    assert caught.value.code == 0
    plan = json.loads(capfd.readouterr().out)
    assert "TOY mixed 3/4-bit" in plan["recipe"]
    assert "shrunk to 0.5" in plan["recipe"]
    # A thousand seconds for each of two layers.
    assert plan["seconds"]["high"] > plan["seconds"]["low"] > 200
    with pytest.raises(SystemExit) as caught:
        main(["quantize", str(small_model), "-o", str(out), *flags])
    assert caught.value.code == 0
    report = json.loads(capfd.readouterr().out)
    assert report["recipe"]["options"] == {"shrink": 0.5}
    assert report["bytes_after"] == plan["bytes_after"] == read_checkpoint(out).nbytes
    assert "shrunk to 0.5" in (out / "README.md").read_text()
    assert reproduce_model(out).identical


def test_options_are_checked(toy: Toy, small_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="out of range"):
        make_recipe("toy", shrink=0.0)
    with pytest.raises(UsageError, match="awq has no --shrink"):
        make_recipe("awq", shrink=0.5)
    with pytest.raises(UsageError, match="5 bits"):
        make_recipe("toy", bits=5)
    speed = SpeedRange(Speed(1e10), Speed(1e10))
    seconds = preflight(small_model, tmp_path / "out", make_recipe("toy"), measured=speed).seconds
    assert seconds is not None
    assert seconds.low < 2000 < seconds.high


def test_a_name_is_taken_once(toy: Toy) -> None:
    class Other(Toy):
        pass

    with pytest.raises(ValueError, match="toy"):
        register_algorithm(Other())


def test_an_unknown_algorithm_is_refused() -> None:
    with pytest.raises(UsageError, match="'toy' is not known"):
        make_recipe("toy")


@pytest.mark.parametrize("method", ["awq", "gptq", "int8"])
def test_weights_that_are_not_finite_are_refused(
    method: str, small_model: Path, short_text: str, tmp_path: Path
) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(small_model, broken)
    path = broken / "model-00001-of-00002.safetensors"
    tensors: dict[str, Any] = load_file(path)
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = torch.inf
    save_file(tensors, path, metadata={"format": "pt"})
    options = {"activations": "static"} if method == "int8" else {}
    recipe = make_recipe(method, calibration=short_text, samples=2, seq_len=32, **options)
    with pytest.raises(ValueError, match=r"up_proj.weight holds NaN or infinity"):
        quantize_model(broken, tmp_path / "out", recipe)
