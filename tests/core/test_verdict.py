"""Who serves what: the same answer from headers, from the config alone, in inspect and in plan. No engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.matrix import AVX512, CELLS, CUDA, Cell
from tests.support.quantized_checkpoints import write_checkpoint, write_folder
from tests.support.recipes import TOKEN_FP8, Recipe, awq, compressed_tensors, fp8, gptq, packed
from tests.support.tiny_models import tiny_model
from vllm_quant_plugin.checkpoint import read_checkpoint
from vllm_quant_plugin.cli import main
from vllm_quant_plugin.convert.api import ConvertReport, convert_model, targets
from vllm_quant_plugin.errors import CheckpointError, UsageError
from vllm_quant_plugin.formats import Host, parse_quantization_config
from vllm_quant_plugin.formats.verdict import Part, described_parts, judge
from vllm_quant_plugin.inspect import as_dict, inspect_checkpoint, verdict
from vllm_quant_serve.plan.api import make_plan
from vllm_quant_serve.plan.request import PlanRequest

ON_DISK = [cell for cell in CELLS if cell.recipe.config is not None and not cell.refused and cell.tp == 1]
OLD = Host("cpu", frozenset({"avx2"}))
MODEL = tiny_model("llama")
KV = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}


@pytest.mark.parametrize("cell", ON_DISK, ids=lambda cell: cell.name)
def test_the_config_alone_gives_the_same_answer(cell: Cell) -> None:
    """A Hub model is judged by its config: as by its headers, but for what no config tells (an FP8 LM head)."""
    model = parse_quantization_config(cell.recipe.config or {})
    config = tiny_model(cell.architecture).config
    for host in (OLD, AVX512, CUDA):
        known, guessed = cell.verdict(host), judge(model, host, described_parts(model, config))
        if cell.name == "fp8-lm-head":
            continue
        assert (guessed.server, guessed.method) == (known.server, known.method), host


@pytest.mark.parametrize("host", [OLD, AVX512, CUDA], ids=["avx2", "avx512", "cuda"])
def test_every_module_has_a_server_a_kernel_and_a_reason(tmp_path: Path, host: Host) -> None:
    cell = next(cell for cell in CELLS if cell.name == "ct-4bit-g64-mixtral")
    written = write_checkpoint(tmp_path, tiny_model("mixtral"), cell.recipe)
    found = as_dict(inspect_checkpoint(read_checkpoint(written.folder), host))
    modules = {m["name"].rpartition(".")[2]: m for m in found["modules"]}
    on_cpu = host.device == "cpu"
    assert found["server"] == ("plugin" if on_cpu else "vllm")
    assert (modules["w1"]["kind"], modules["q_proj"]["kind"]) == ("experts", "linear")
    assert {m["server"] for m in found["modules"] if m["scheme"]} == {"vqp_compressed_tensors" if on_cpu else "vLLM"}
    assert bool(modules["w1"]["in_tree_rejects"]) is on_cpu
    assert bool(modules["q_proj"]["in_tree_rejects"]) is (host is OLD)
    assert modules["q_proj"]["kernel"] == ("vqp W4A16" if on_cpu else "vLLM")


def test_vllms_kernel_is_named_where_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, recipe, kernel in (
        ("awq", awq(4, 64), "CPUWNA16LinearKernel"),
        ("packed", packed(4, 64), "CPUWNA16LinearKernel"),
        ("fp8", compressed_tensors("float-quantized", activation=TOKEN_FP8), "ChannelWiseTorchFP8ScaledMMLinearKernel"),
    ):
        folder = write_checkpoint(tmp_path / name, MODEL, recipe).folder
        found = inspect_checkpoint(read_checkpoint(folder), AVX512)
        assert {m.kernel for m in found.modules if m.scheme} == {kernel}
        assert verdict(found).startswith("In-tree vLLM serves it on a CPU")
    monkeypatch.setenv("VQP_LINEAR_KERNELS", "first")
    found = inspect_checkpoint(read_checkpoint(tmp_path / "packed/quantized"), AVX512)
    assert {m.kernel for m in found.modules if m.scheme} == {"vqp W4A16"}


@pytest.mark.parametrize(("targets", "server"), [(["Linear"], "plugin"), (["Linear", "lm_head"], "vllm")])
def test_an_lm_head_of_compressed_tensors_is_seen_by_name(targets: list[str], server: str) -> None:
    """vLLM's ParallelLMHead is no Linear: without a name its loader finds no place for ``lm_head.weight_packed``."""
    config = packed(4, 64).config
    assert config is not None
    group = {**config["config_groups"]["group_0"], "targets": targets}
    model = parse_quantization_config({**config, "config_groups": {"group_0": group}, "ignore": []})
    scheme = model.scheme_for("lm_head")
    assert scheme is not None
    found = judge(model, CUDA, [Part("lm_head", "lm_head", scheme, 512, 256)])
    assert (found.server, found.method) == (server, "vqp_compressed_tensors")


def test_ernie_and_nested_configs_are_mixtures() -> None:
    model = parse_quantization_config(packed(4, 64).config or {})
    for config in ({"moe_num_experts": 8}, {"text_config": {"num_experts": 8}}):
        assert "experts on a CPU" in str(judge(model, AVX512, described_parts(model, config)).in_tree)
    assert judge(model, AVX512, described_parts(model, {})).in_tree is None


@pytest.mark.parametrize("targets", [None, []])
def test_a_quantized_kv_cache_alone(tmp_path: Path, targets: Any) -> None:
    groups = {} if targets is None else {"group_0": {"targets": [], "weights": None, "input_activations": None}}
    config = {"quant_method": "compressed-tensors", "format": "dense", "config_groups": groups, "kv_cache_scheme": KV}
    recipe = Recipe(config, None, kv_scales=(0.03, 0.02))
    folder = write_checkpoint(tmp_path, MODEL, recipe).folder
    for host in (AVX512, CUDA):
        found = inspect_checkpoint(read_checkpoint(folder), host)
        assert verdict(found).startswith("In-tree vLLM serves it")
        assert not any(m.scheme for m in found.modules)
    assert "--kv-cache-dtype bfloat16" in verdict(inspect_checkpoint(read_checkpoint(folder), OLD))
    plan = make_plan(PlanRequest(str(folder), gpu=("h100",)))
    plain = make_plan(PlanRequest(str(tmp_path / "reference"), gpu=("h100",)))
    assert (plan.kv_cache_dtype, 2 * plan.kv_bytes_per_token) == ("fp8", plain.kv_bytes_per_token)
    scales = 4 * 2 * 2  # of two layers, a float32 each
    assert 0 <= plan.weight_bytes_per_rank - plain.weight_bytes_per_rank <= scales
    assert plan.quantization == "BF16, FP8 KV cache (compressed-tensors)"


@pytest.mark.parametrize(
    ("recipe", "file", "side", "method"),
    [
        (gptq(3, 128), "quantize_config.json", {"bits": 3, "group_size": 128, "desc_act": False, "sym": True}, "gptq"),
        (
            awq(4, 64),
            "quant_config.json",
            {"zero_point": True, "q_group_size": 64, "w_bit": 4, "version": "GEMM"},
            "awq",
        ),
    ],
)
def test_a_config_in_a_file_of_its_own(
    tmp_path: Path, recipe: Recipe, file: str, side: dict[str, Any], method: str
) -> None:
    """Old AutoGPTQ and llm-awq folders: modules and plan as with quantization_config, and the flag that they need."""
    folder = write_checkpoint(tmp_path, MODEL, recipe).folder
    whole = inspect_checkpoint(read_checkpoint(folder), AVX512)
    before = make_plan(PlanRequest(str(folder), gpu=("h100",)))
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"qweight is quantized, and neither config.json nor a file"):
        inspect_checkpoint(read_checkpoint(folder), AVX512)
    (folder / file).write_text(json.dumps(side))
    found = inspect_checkpoint(read_checkpoint(folder), AVX512)
    assert [(m.name, m.scheme) for m in found.modules] == [(m.name, m.scheme) for m in whole.modules]
    assert found.method == method
    assert file in verdict(found)
    assert f"--quantization vqp_{method}" in verdict(found)
    plan = make_plan(PlanRequest(str(folder), gpu=("h100",)))
    assert plan.weight_bytes_per_rank == before.weight_bytes_per_rank
    assert plan.flags["--quantization"] == (method if method == "awq" else "vqp_gptq")
    convert_model(folder, tmp_path / "out", "compressed-tensors")
    assert read_checkpoint(tmp_path / "out").side_file == ""


def test_two_files_that_contradict_each_other(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, MODEL.config, {"model.norm.weight": torch.ones(8)})
    (folder / "quantize_config.json").write_text(json.dumps({"bits": 4, "group_size": 128, "desc_act": False}))
    (folder / "quant_config.json").write_text(json.dumps({"w_bit": 4, "q_group_size": 64, "version": "gemm"}))
    with pytest.raises(CheckpointError, match=r"quantize_config.json and quant_config.json describe two"):
        read_checkpoint(folder)


def test_hf_quant_config_of_modelopt(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, MODEL.config, {"model.norm.weight": torch.ones(8)})
    side = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}}
    (folder / "hf_quant_config.json").write_text(json.dumps(side))
    found = inspect_checkpoint(read_checkpoint(folder), CUDA)
    assert (found.method, verdict(found)) == ("modelopt", "In-tree vLLM serves it on a GPU.")


def test_consolidated_files_are_counted_once(tmp_path: Path) -> None:
    """Mistral's own file beside transformers' shards: every weight twice on disk, once in memory."""
    folder = write_checkpoint(tmp_path, MODEL, Recipe(None, None)).folder
    alone = read_checkpoint(folder).nbytes
    save_file({"tok_embeddings.weight": MODEL.tensors["lm_head.weight"]}, folder / "consolidated.safetensors")
    assert read_checkpoint(folder).nbytes == alone
    (folder / "model.safetensors").unlink()
    assert list(read_checkpoint(folder).tensors) == ["tok_embeddings.weight"]


def test_scales_by_the_names_of_transformers(tmp_path: Path) -> None:
    """Mistral and Devstral in FP8: the same numbers under other names, converted and judged like the usual ones."""
    ranges = dict.fromkeys(MODEL.linears, (-1.0, 1.0))
    folder = write_checkpoint(tmp_path, MODEL, fp8(static=True), input_ranges=ranges).folder
    convert_model(folder, tmp_path / "expected", "compressed-tensors")
    renamed = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        name = name.replace(".weight_scale", ".weight_scale_inv").replace(".input_scale", ".activation_scale")
        renamed[name] = tensor
    save_file(renamed, folder / "model.safetensors")
    found = inspect_checkpoint(read_checkpoint(folder), CUDA)
    assert found.automatic
    assert "scales named" in str(found.in_tree_rejects)
    convert_model(folder, tmp_path / "out", "compressed-tensors")
    one, two = (load_file(tmp_path / out / "model.safetensors") for out in ("expected", "out"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name].float(), two[name].float()) for name in one)


def test_no_figure_is_cut_in_80_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_checkpoint(tmp_path, MODEL, gptq(4, 128, act_order=True)).folder
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["inspect", str(folder), "--device", "cpu", "--modules"])
    printed = capsys.readouterr().out
    assert all(len(line) <= 80 for line in printed.splitlines() if "│" in line)
    assert "…" not in printed
    assert "0.26" in printed


@pytest.mark.parametrize("group", [64, 128, 256])
def test_the_tp_sizes_of_inspect_are_those_of_plan(tmp_path: Path, group: int) -> None:
    folder = write_checkpoint(tmp_path, MODEL, gptq(4, group)).folder
    listed = inspect_checkpoint(read_checkpoint(folder), CUDA).tp
    for tp, reason in listed.items():
        request = PlanRequest(str(folder), gpu=("h100:8",), tensor_parallel_size=tp)
        if reason:
            with pytest.raises(Exception, match=r"[Tt]ensor|TP|divide|multiple"):
                make_plan(request)
        else:
            assert make_plan(request).tensor_parallel_size == tp


GRID = ("awq-4bit-g64-qwen2", "gptq-v1-4bit-g128", "gptq-act-order-4bit-g64", "gptq-lm-head", "fp8-tensor-dynamic",
        "fp8-block-128", "fp8-lm-head", "ct-act-order-4bit-g64", "ct-4bit-g64-mixtral", "int8-w8a16",
        "ct-fp8-and-4bit")  # fmt: skip


def converted(folder: Path, out: Path, to: str) -> tuple[ConvertReport | None, str]:
    """The report of a conversion, or the hint of its refusal."""
    try:
        return convert_model(folder, out, to), ""
    except UsageError as error:
        return None, error.hint


@pytest.mark.parametrize("to", targets())
@pytest.mark.parametrize("name", GRID)
def test_what_is_converted_loads_somewhere(tmp_path: Path, name: str, to: str) -> None:
    """The report's verdict is that of ``inspect`` on the output; where there is none, nothing is written."""
    cell = next(cell for cell in CELLS if cell.name == name)
    folder = write_checkpoint(tmp_path, tiny_model(cell.architecture), cell.recipe).folder
    report, refusal = converted(folder, tmp_path / "out", to)
    if report is None:
        assert refusal
        assert not (tmp_path / "out").exists()
        return
    made = read_checkpoint(tmp_path / "out")
    for host in (Host.local("cpu"), CUDA):
        judged = inspect_checkpoint(made, host).verdict
        assert judged is not None
        assert judged.server != "nobody"
        named = judged.method if judged.server == "plugin" else "vLLM"
        assert str(named) in report.served_by[host.device]


def test_quantized_embeddings_are_refused_before_work_starts(tmp_path: Path) -> None:
    model = tiny_model("llama")
    recipe = gptq(4, 128)
    stored = write_checkpoint(tmp_path, model, recipe).folder
    tensors = load_file(stored / "model.safetensors")
    del tensors["model.embed_tokens.weight"]
    for leaf in ("qweight", "qzeros", "scales", "g_idx"):
        tensors[f"model.embed_tokens.{leaf}"] = tensors[f"model.layers.0.self_attn.q_proj.{leaf}"].clone()
    save_file(tensors, stored / "model.safetensors")
    found = inspect_checkpoint(read_checkpoint(stored), CUDA)
    assert "quantized embeddings" in verdict(found)
    assert verdict(found).startswith("Nothing here serves it")
    with pytest.raises(UsageError, match="quantized embeddings"):
        convert_model(stored, tmp_path / "out", "awq")
