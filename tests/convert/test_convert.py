"""Conversions keep every weight to the bit, or refuse with the reason and leave nothing behind."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.convert.conftest import Sources, dequantized
from vllm_quant_kernels.scheme import Int
from vllm_quant_plugin.checkpoint import read_checkpoint
from vllm_quant_plugin.cli import main
from vllm_quant_plugin.convert.api import convert_model
from vllm_quant_plugin.errors import OutputError, UsageError
from vllm_quant_plugin.formats import get_format, parse_quantization_config
from vllm_quant_plugin.formats.compressed_tensors import PACK_QUANTIZED
from vllm_quant_plugin.quantize.io.report import hash_tensor_files
from vllm_quant_plugin.rtn import quantize_int
from vllm_quant_plugin.schemes import StoredScheme

KEPT = [
    ("awq", "gptq", "gptq"),
    ("awq", "compressed-tensors", "pack-quantized"),
    ("gptq", "awq", "awq"),
    ("gptq", "compressed-tensors", "pack-quantized"),
    ("gptq-actorder", "compressed-tensors", "pack-quantized"),
    ("gptq-asym", "awq", "awq"),
    ("gptq-asym", "compressed-tensors", "pack-quantized"),
    ("rtn3", "gptq", "gptq"),
    ("rtn4", "gptq", "gptq"),
    ("rtn4", "awq", "awq"),
    ("fp8", "compressed-tensors", "float-quantized"),
    ("fp8-block", "compressed-tensors", "float-quantized"),
]


@pytest.mark.parametrize(("source", "to", "storage"), KEPT, ids=lambda value: value)
def test_every_weight_is_the_same_number(sources: Sources, tmp_path: Path, source: str, to: str, storage: str) -> None:
    report = convert_model(sources[source], tmp_path / "out", to)
    before, after = dequantized(sources[source]), dequantized(tmp_path / "out")
    assert report.modules == len(before) == len(after) == 14
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    made = read_checkpoint(tmp_path / "out")
    model = parse_quantization_config(made.quantization_config)
    stored = model.scheme_for("model.layers.0.mlp.up_proj").storage
    assert stored.format == to
    assert storage == (stored["layout"] if to == "compressed-tensors" else to)
    assert model.scheme_for("lm_head") is None
    assert report.bytes_after == made.nbytes
    assert report.files == hash_tensor_files(tmp_path / "out")
    original = read_checkpoint(sources[source])
    assert {p.name for p in made.files} == {p.name for p in original.files}
    assert {p.name for p in (tmp_path / "out").iterdir()} >= {"tokenizer.json", "conversion.json", "config.json"}
    for name in ("model.embed_tokens.weight", "model.norm.weight"):
        tensors = [load_file(c.tensors[name].file)[name] for c in (original, made)]
        assert torch.equal(*tensors)


def test_there_and_back_gives_the_same_bytes(sources: Sources, tmp_path: Path) -> None:
    convert_model(sources["awq"], tmp_path / "there", "gptq")
    convert_model(tmp_path / "there", tmp_path / "back", "awq")
    assert hash_tensor_files(tmp_path / "back") == hash_tensor_files(sources["awq"])
    configs = [json.loads((f / "config.json").read_text()) for f in (sources["awq"], tmp_path / "back")]
    assert configs[0] == configs[1]


REFUSED = [
    ("rtn3", "awq", "3 bits"),
    ("gptq-actorder", "awq", "3 bits"),
    ("int8", "gptq", "8-bit activations"),
    ("int8", "compressed-tensors", "already"),
    ("gptq", "gptq", "already"),
    ("fp8", "awq", "holds integers"),
    ("awq", "gguf", "not known"),
]


@pytest.mark.parametrize(("source", "to", "said"), REFUSED, ids=lambda value: value)
def test_what_would_lose_something_is_refused(
    sources: Sources, tmp_path: Path, capfd: pytest.CaptureFixture[str], source: str, to: str, said: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["convert", str(sources[source]), "--to", to, "-o", str(tmp_path / "out")])
    error = capfd.readouterr().err
    assert caught.value.code == 2
    assert said in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_scales_that_do_not_fit_are_refused(sources: Sources, tmp_path: Path) -> None:
    """bfloat16 reaches further down than float16: such a scale would become another number."""
    folder = shutil.copytree(sources["rtn4"], tmp_path / "in")
    shard = folder / "model-00001-of-00002.safetensors"
    tensors = load_file(shard)
    tensors["model.layers.0.mlp.up_proj.weight_scale"][3, 1] = 1.1e-9
    save_file(tensors, shard, metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"up_proj: its bfloat16 scales") as caught:
        convert_model(folder, tmp_path / "out", "gptq")
    assert caught.value.hint
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_an_output_is_replaced_on_demand_only(sources: Sources, tmp_path: Path) -> None:
    convert_model(sources["awq"], tmp_path / "out", "gptq")
    with pytest.raises(OutputError, match="exists already"):
        convert_model(sources["awq"], tmp_path / "out", "compressed-tensors")
    report = convert_model(sources["awq"], tmp_path / "out", "compressed-tensors", overwrite=True)
    assert hash_tensor_files(tmp_path / "out") == report.files
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_command_prints_the_report(sources: Sources, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["convert", str(sources["awq"]), "--to", "gptq", "-o", str(tmp_path / "out"), "--json"])
    assert caught.value.code == 0
    report = json.loads(capfd.readouterr().out)
    assert (report["method_before"], report["method_after"], report["modules"]) == ("awq", "gptq", 14)


@pytest.mark.engine
def test_vllm_says_the_same_of_both(sources: Sources, tmp_path: Path) -> None:
    """AWQ and what it became, each through the plugin's own method in float32."""
    from tests.support.engines import ask

    convert_model(sources["awq"], tmp_path / "out", "gptq")
    before = ask(sources["awq"], quantization="vqp_awq")
    after = ask(tmp_path / "out", quantization="vqp_gptq")
    assert after.tokens == before.tokens
    # The same weights in the same packed layout: the same sums.
    assert all(torch.equal(a, b) for a, b in zip(after.logits, before.logits, strict=True))


@pytest.mark.parametrize("order", ["group", "GROUP", "Dynamic", True, "weight", "static", None, False])
def test_no_permutation_is_lost(tmp_path: Path, order: object) -> None:
    """Whatever ``actorder`` is called, the converted weight is the one that compressed-tensors itself decompresses."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    n, k, group = 64, 128, 32
    generator = torch.Generator().manual_seed(3)
    g_idx = (torch.arange(k) // group)[torch.randperm(k, generator=generator)].int()
    layout = get_format(scheme := StoredScheme(Int(4), group, act_order=True, storage=PACK_QUANTIZED))
    weight = quantize_int(torch.randn(n, k, generator=generator), 4, group, scale_dtype=torch.float16)
    packed = layout.pack(replace(weight, g_idx=g_idx), scheme)
    arguments = {"num_bits": 4, "strategy": "group", "group_size": group, "actorder": order}
    groups = {"g": {"targets": ["Linear"], "weights": arguments}}
    config = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups}
    (tmp_path / "in").mkdir()
    (tmp_path / "in/config.json").write_text(json.dumps({"quantization_config": config}))
    save_file({f"layers.0.o_proj.{leaf}": tensor for leaf, tensor in packed.items()}, tmp_path / "in/model.safetensors")
    named = order in ("group", "GROUP", "Dynamic", True)
    if not named:
        with pytest.raises(UsageError, match="g_idx that its config does not announce"):
            convert_model(tmp_path / "in", tmp_path / "out", "gptq")
        return
    convert_model(tmp_path / "in", tmp_path / "out", "gptq")
    assert read_checkpoint(tmp_path / "out").quantization_config["desc_act"] is True
    library = BaseCompressor.get_value_from_registry("pack-quantized")
    expected = library.decompress(packed, QuantizationScheme(targets=["Linear"], weights=arguments))["weight"]
    assert torch.equal(dequantized(tmp_path / "out")["layers.0.o_proj"].half(), expected.half())


def with_transforms(source: Path, folder: Path, *locations: str, target: str, kind: str = "hadamard") -> Path:
    """A copy of the checkpoint whose config has a transform of blocks of 16, with a stored matrix."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    applied = [{"targets": [target], "location": at, "inverse": False, "ignore": []} for at in locations]
    group = {"type": kind, "apply": applied, "head_dim": 16}
    config["quantization_config"]["transform_config"] = {"config_groups": {"R": group}}
    (folder / "config.json").write_text(json.dumps(config))
    extra = {f"model.layers.0.self_attn.R_{at}.weight": torch.ones(16, 16) for at in locations}
    save_file(extra, folder / "transforms.safetensors")
    index = folder / "model.safetensors.index.json"
    if index.exists():
        listed = json.loads(index.read_text())
        listed["weight_map"] |= dict.fromkeys(extra, "transforms.safetensors")
        index.write_text(json.dumps(listed))
    return folder


@pytest.mark.parametrize(
    ("locations", "target", "kind"),
    [
        (("input", "weight_input"), "re:.*down_proj$", "hadamard"),
        (("q_attn",), "re:.*self_attn$", "hadamard"),
        (("q_attn", "k_cache"), "re:.*self_attn$", "random-matrix"),
    ],
)
def test_online_transforms_are_refused_by_name(
    sources: Sources,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    locations: tuple[str, ...],
    target: str,
    kind: str,
) -> None:
    folder = with_transforms(sources["rtn4"], tmp_path / "in", *locations, target=target, kind=kind)
    with pytest.raises(SystemExit) as left:
        main(["convert", str(folder), "--to", "gptq", "-o", str(tmp_path / "out")])
    assert left.value.code == UsageError.exit_code
    assert f"transform_config: R ({kind} 16) at {locations[0]} runs on activations" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("locations", "target"),
    [(("q_attn", "k_cache"), "re:.*self_attn$"), (("weight_input", "weight_output"), "Linear")],
)
def test_transforms_without_effect_are_dropped(
    sources: Sources, tmp_path: Path, locations: tuple[str, ...], target: str
) -> None:
    folder = with_transforms(sources["rtn4"], tmp_path / "in", *locations, target=target)
    convert_model(folder, tmp_path / "out", "gptq")
    before, after = dequantized(sources["rtn4"]), dequantized(tmp_path / "out")
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    made = read_checkpoint(tmp_path / "out")
    assert "transform_config" not in made.quantization_config
    assert not [name for name in made.tensors if ".R_" in name]
