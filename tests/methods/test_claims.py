"""Who takes a checkpoint: what in-tree vLLM rejects is claimed without a flag, what it serves by flag only."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.engines import ask, engine_args
from tests.support.matrix import AVX512, CELLS, CUDA, Cell
from tests.support.oracle import input_ranges
from tests.support.quantized_checkpoints import write_checkpoint, write_folder
from tests.support.recipes import fp8
from tests.support.tiny_models import tiny_model
from vllm_quant_plugin import compat, plugin
from vllm_quant_plugin.checkpoint import read_checkpoint
from vllm_quant_plugin.errors import CheckpointError
from vllm_quant_plugin.formats import Host
from vllm_quant_plugin.methods.config import VqpConfig, config_class

ON_DISK = [cell for cell in CELLS if cell.recipe.config is not None and not cell.refused and cell.tp == 1]
REJECTED = {cell.name: cell for cell in ON_DISK if cell.in_tree_rejects(AVX512)}


@pytest.fixture(autouse=True)
def _registered() -> None:
    plugin.register()


def chosen(folder: Path, **options: Any) -> str:
    """The quantization method that vLLM settles on for a model folder, without starting an engine."""
    from vllm.engine.arg_utils import EngineArgs

    wanted = {k: v for k, v in engine_args(folder, **options).items() if k != "disable_log_stats"}
    return EngineArgs(**wanted, disable_log_stats=True).create_model_config().quantization


@pytest.mark.parametrize("cell", ON_DISK, ids=lambda cell: cell.name)
def test_claimed_when_in_tree_rejects(cell: Cell, tmp_path: Path) -> None:
    model = tiny_model(cell.architecture).config
    folder = write_folder(tmp_path, {**model, "quantization_config": dict(cell.recipe.config or {})}, {})
    without_flag = chosen(folder, dtype="bfloat16")
    claimed = cell.verdict(Host.local("cpu")).claimed
    if claimed:
        assert without_flag == claimed == cell.method
    else:
        assert not without_flag.startswith("vqp_")
        assert chosen(folder, quantization=cell.method, dtype="bfloat16") == cell.method


# One cell for each kind of reason; the rest of the cells that in-tree serves are run by
# test_engine_options.py, through in-tree, without a flag.
SAMPLE = (
    "awq-2bit-g64",
    "awq-4bit-g64-mixtral",
    "gptq-v1-4bit-g16",
    "gptq-v1-8bit-g32",
    "gptq-v1-4bit-g256-asym",
    "gptq-act-order-4bit-g64",
    "fp8-ct-channel-qwen2",
    "fp8-ct-tensor-static",
    "fp8-tensor-dynamic",
    "int8-w8a16",
    "int8-w8a8-token-mixtral",
    "fp8-ct-channel-mixtral",
    "fp8-ct-sparse",
    "fp8-lm-head",
    "ct-4bit-g64-mixtral",
    "ct-act-order-4bit-g64",
    "ct-w8a16-and-3bit",
)


@pytest.mark.engine
@pytest.mark.parametrize("name", SAMPLE)
def test_in_tree_really_rejects(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the plugin's claims switched off vLLM itself fails on what ``in_tree.py`` says it does not serve."""
    cell = REJECTED[name]
    model = tiny_model(cell.architecture)
    written = write_checkpoint(tmp_path, model, cell.recipe, input_ranges=input_ranges(model))
    monkeypatch.setattr(VqpConfig, "override_quantization_method", classmethod(lambda cls, *args, **kwargs: None))
    with pytest.raises((ValueError, NotImplementedError, RuntimeError, AssertionError, DeprecationWarning)):
        ask(written.folder, dtype="bfloat16")


@pytest.mark.parametrize(
    ("config", "user_quant", "message"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "vqp_int8", "does not read gptq checkpoints"),
        ({"quant_method": "gptq", "bits": 9, "group_size": 128}, "vqp_gptq", "GPTQ with 9 bits"),
    ],
)
def test_flag_that_does_not_fit(config: dict[str, Any], user_quant: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        config_class(user_quant).override_quantization_method(config, user_quant)


def test_another_method_is_left_alone() -> None:
    config = {"quant_method": "gptq", "bits": 3, "group_size": 128}
    gptq = config_class("vqp_gptq")
    assert gptq.override_quantization_method(config, "auto_gptq") is None
    assert config_class("vqp_fp8").override_quantization_method(config, None) is None
    assert gptq.override_quantization_method({"quant_method": "bitsandbytes"}, None) is None


def test_no_avx512_no_in_tree() -> None:
    old = Host("cpu", frozenset({"avx2"}))
    by_name = {cell.name: cell for cell in CELLS}
    assert by_name["awq-4bit-g128"].in_tree_rejects(old)
    assert by_name["gptq-v1-4bit-g128"].in_tree_rejects(old)


def test_a_checkpoint_that_is_written_again_is_judged_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FP8 with a quantized LM head, which the headers alone tell, and without: in one process, under one path."""
    monkeypatch.setattr("vllm_quant_plugin.methods.config.host", lambda: CUDA)
    claims, model = config_class("vqp_fp8"), tiny_model("llama")
    config = dict(fp8(lm_head=True).config or {})
    known = SimpleNamespace(_name_or_path=str(tmp_path / "quantized"), architectures=["LlamaForCausalLM"])
    for lm_head, method in ((True, "vqp_fp8"), (False, None), (True, "vqp_fp8")):
        write_checkpoint(tmp_path, model, fp8(lm_head=lm_head))
        assert claims.override_quantization_method(config, None, known) == method


def test_a_model_of_the_hub_is_judged_by_its_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the commit that its config names, as vLLM itself asks for them."""
    monkeypatch.setattr("vllm_quant_plugin.methods.config.host", lambda: CUDA)
    recipe = fp8(lm_head=True)
    folder = write_checkpoint(tmp_path, tiny_model("llama"), recipe).folder
    headers = {n: {"dtype": t.dtype, "shape": list(t.shape)} for n, t in read_checkpoint(folder).tensors.items()}
    asked = []
    monkeypatch.setattr(compat, "hub_tensors", lambda *where: asked.append(where) or headers)
    config = SimpleNamespace(_name_or_path="org/name", _commit_hash="abc", architectures=["LlamaForCausalLM"])
    claims = config_class("vqp_fp8")
    assert claims.override_quantization_method(dict(recipe.config or {}), None, config) == "vqp_fp8"
    assert asked == [("org/name", "abc")]
    headers.clear()
    assert claims.override_quantization_method(dict(recipe.config or {}), None, config) is None
