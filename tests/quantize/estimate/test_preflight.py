"""A dry run says exactly how large the output gets, and what will not work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vllm_quant_plugin.architecture.families import describe
from vllm_quant_plugin.architecture.headers import with_headers
from vllm_quant_plugin.architecture.placement import Placement
from vllm_quant_plugin.architecture.sharding import TP_SIZES
from vllm_quant_plugin.checkpoint import read_checkpoint
from vllm_quant_plugin.cli import main
from vllm_quant_plugin.errors import CheckpointError, OutputError, UsageError
from vllm_quant_plugin.formats import Host, parse_quantization_config
from vllm_quant_plugin.quantize.algorithm import get_algorithm
from vllm_quant_plugin.quantize.api import make_recipe, preflight, quantize_model
from vllm_quant_plugin.quantize.estimate.cost import layer_memory
from vllm_quant_plugin.quantize.estimate.preflight import check_room
from vllm_quant_plugin.quantize.modules import check_input
from vllm_quant_plugin.quantize.reproduce import reproduce_model
from vllm_quant_serve.plan.memory.weights import WeightModel

DATA = {"samples": 2, "seq_len": 32}


@pytest.mark.parametrize(
    ("method", "level", "options"),
    [
        ("int8", None, {}),
        ("int8", "W8A16", {"symmetric": False}),
        ("fp8", None, {}),
        ("fp8", "tensor", {}),
        ("fp8", "block", {}),
        ("rtn", "3bit-64g", {}),
        ("rtn", "4bit-channel-asym", {}),
        ("rtn", None, {"bits": 5, "symmetric": False}),
        ("awq", "4bit-64g", DATA),
        ("awq", "3bit", DATA),
        ("gptq", "4bit", DATA),
        ("gptq", "3bit-64g-asym", {**DATA, "act_order": False}),
    ],
)
def test_size_is_exact(small_model: Path, tmp_path: Path, method: str, level: str | None, options: dict) -> None:
    recipe = make_recipe(method, level=level, **options)
    plan = preflight(small_model, tmp_path / "out", recipe)
    assert not list(tmp_path.iterdir())
    report = quantize_model(small_model, tmp_path / "out", recipe)
    assert plan.bytes_after == report.bytes_after == read_checkpoint(tmp_path / "out").nbytes
    assert plan.bits_per_weight == report.bits_per_weight


def test_tensor_parallel_sizes_that_cut_groups_are_named(small_model: Path, tmp_path: Path) -> None:
    # o_proj has 256 inputs: two groups of 128. down_proj has 768: six.
    plan = preflight(small_model, tmp_path / "out", make_recipe("awq", level="4bit-128g"))
    assert set(plan.tp_problems) == {4, 8}
    assert "is not a multiple of group 128; TP 2 works" in plan.tp_problems[4]


def test_the_dry_run_lists_the_sizes_that_plan_allows(small_model: Path, tmp_path: Path) -> None:
    for recipe in (make_recipe("int8"), make_recipe("rtn", level="4bit-128g")):
        listed = {tp for tp in TP_SIZES if tp not in preflight(small_model, tmp_path / "out", recipe).tp_problems}
        quantize_model(small_model, tmp_path / recipe.method, recipe)
        done = read_checkpoint(tmp_path / recipe.method)
        scheme = parse_quantization_config(done.quantization_config)
        weights = WeightModel(with_headers(describe(done.config), done, scheme), scheme, 2)
        assert listed == {tp for tp in TP_SIZES if not any(weights.refusals(Placement(tp)))}


def test_stock_vllm_is_predicted(small_model: Path, tmp_path: Path) -> None:
    plan = preflight(small_model, tmp_path / "out", make_recipe("gptq", level="4bit-actorder"))
    assert "act-order" in str(plan.stock_vllm["cuda"])
    plan = preflight(small_model, tmp_path / "out", make_recipe("int8"))
    assert plan.stock_vllm["cuda"] is None
    assert ("VNNI" in str(plan.stock_vllm["cpu"])) is Host.local("cpu").lacks_vnni


def test_kernels_are_predicted(small_model: Path, tmp_path: Path) -> None:
    recipes = {"rtn": make_recipe("rtn"), "awq": make_recipe("awq"), "gptq": make_recipe("gptq", level="3bit")}
    plans = {name: preflight(small_model, tmp_path / "out", recipe) for name, recipe in recipes.items()}
    assert "vqp_gptq: vqp W3A16" in plans["gptq"].served_by["cpu"]
    assert "--quantization vqp_awq" in plans["awq"].served_by["cuda"]


def test_modules_that_stay_in_16_bits_are_in_memory_too(small_model: Path) -> None:
    checkpoint = read_checkpoint(small_model)
    layer = [m for m in check_input(checkpoint) if m.name.startswith("model.layers.0.")]
    down = [m for m in layer if m.name.endswith("down_proj")]
    weights = sum(m.in_features * m.out_features for m in layer)
    gptq = get_algorithm("gptq")
    whole, few = (
        layer_memory(checkpoint, "model.layers.0", part, gptq.cost(part, 64, gptq.options()).memory_bytes, 0)
        for part in (layer, down)
    )
    assert 4 * weights < few < whole


def test_no_room_is_refused(small_model: Path, tmp_path: Path) -> None:
    plan = preflight(small_model, tmp_path / "out", make_recipe("awq"))
    with pytest.raises(OutputError, match="disk"):
        check_room(plan, plan.disk_bytes - 1, 1 << 40)
    with pytest.raises(UsageError, match="memory"):
        check_room(plan, 1 << 40, plan.peak_memory_bytes - 1)
    check_room(plan, plan.disk_bytes, plan.peak_memory_bytes)


@pytest.mark.parametrize(("text", "said"), [(None, "no such file"), ("", "holds no text"), ("[1", "not readable")])
def test_calibration_that_cannot_be_read_is_refused(
    small_model: Path, tmp_path: Path, text: str | None, said: str
) -> None:
    path = tmp_path / "calibration.json"
    if text is not None:
        path.write_text(text or "[]")
    with pytest.raises(UsageError, match=said):
        preflight(small_model, tmp_path / "out", make_recipe("awq", calibration=str(path)))


def test_command_prints_the_plan(small_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["quantize", str(small_model), "-m", "awq", "-o", str(tmp_path / "out"), "--dry-run", "--json"])
    assert caught.value.code == 0
    plan = json.loads(capfd.readouterr().out)
    assert len(plan["modules"]) == 14
    assert not list(tmp_path.iterdir())


def test_reproduce(small_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    quantize_model(small_model, out, make_recipe("int8"))
    assert reproduce_model(out).identical
    with (out / "model-00001-of-00002.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(bytes([file.read(1) != b"\x01"]))
    with pytest.raises(SystemExit) as caught:
        main(["reproduce", str(out)])
    assert caught.value.code == 1
    assert "model-00001-of-00002.safetensors not reproduced" in capfd.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_reproduce_wants_the_original(small_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    quantize_model(small_model, out, make_recipe("int8"))
    with pytest.raises(CheckpointError, match="not the file"):
        reproduce_model(out, model=out)
