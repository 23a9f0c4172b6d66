"""Where the planner reads a model: folders, hub caches, and headers of hub models without their weights."""

import json
from types import SimpleNamespace

import pytest

from tests.serve.plan.conftest import load_config, write_sparse_safetensors
from vllm_quant_plugin.architecture.families import describe
from vllm_quant_plugin.errors import CheckpointError
from vllm_quant_serve.plan.api import PlanRequest, make_plan
from vllm_quant_serve.plan.model import source

DTYPES = {
    "llama-3.2-1b": "BF16", "llama-2-7b-awq": "F16", "whisper-small": "F16", "gemma-3n-e2b-text": "BF16",
    "qwen3.5-27b-text": "BF16", "falcon-h1-0.5b": "BF16", "jamba-reasoning-3b": "BF16", "olmoe-1b-7b": "BF16",
}  # fmt: skip


def checkpoint_tensors(name: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The tensors that a real checkpoint of this config holds, AWQ-packed where it is quantized."""
    config = load_config(name)
    dtype, found = DTYPES[name], {}
    for parameter in describe(config).parameters():
        stem = parameter.name.removesuffix(".weight")
        if "quantization_config" in config and parameter.linear and not stem.endswith("lm_head"):
            n, k = parameter.shape
            found[f"{stem}.qweight"] = ("I32", (k, n // 8))
            found[f"{stem}.qzeros"] = ("I32", (k // 128, n // 8))
            found[f"{stem}.scales"] = ("F16", (k // 128, n))
            continue
        rows = found[parameter.name][1][0] if parameter.name in found else 0  # some names stand for two parts
        for expert in range(parameter.count):
            name = parameter.name.replace(".experts.0.", f".experts.{expert}.")
            found[name] = (dtype, (rows + parameter.shape[0], *parameter.shape[1:]))
    return found


@pytest.mark.parametrize("name", sorted(DTYPES))
@pytest.mark.parametrize("tp", [1, 2])
def test_headers_and_config_give_the_same_weights(model_folder, name, tp):
    request = {"gpu": ("h100:2",), "tensor_parallel_size": tp, "max_model_len": 448}
    by_config = make_plan(PlanRequest(model_folder(name), **request))
    by_headers = make_plan(PlanRequest(model_folder(name, checkpoint_tensors(name)), **request))
    assert by_headers.weight_bytes_per_rank == by_config.weight_bytes_per_rank
    assert by_headers.kv_tokens == by_config.kv_tokens
    if name == "llama-3.2-1b":
        request["quantization"] = "vqp_int8"
        by_config = make_plan(PlanRequest(model_folder(name), **request))
        by_headers = make_plan(PlanRequest(model_folder(name, checkpoint_tensors(name)), **request))
        assert by_headers.weight_bytes_per_rank == by_config.weight_bytes_per_rank
    assert any("config.json" in note for note in by_config.notes)
    assert not any("config.json" in note for note in by_headers.notes)


def test_keys_and_values_of_layers_that_read_another_cache_are_not_loaded(model_folder):
    tensors = checkpoint_tensors("gemma-3n-e2b-text")
    plain = make_plan(PlanRequest(model_folder("gemma-3n-e2b-text", tensors), gpu=("l40s",), max_model_len=2048))
    extra = {**tensors, "model.layers.29.self_attn.k_proj.weight": ("BF16", (512, 2048))}
    more = make_plan(PlanRequest(model_folder("gemma-3n-e2b-text", extra), gpu=("l40s",), max_model_len=2048))
    assert more.weight_bytes_per_rank == plain.weight_bytes_per_rank


def test_headers_see_what_the_config_does_not_say(model_folder):
    tensors = checkpoint_tensors("llama-3.2-1b")
    plain = make_plan(PlanRequest(model_folder("llama-3.2-1b", tensors), gpu=("l4",), max_model_len=2048))
    extra = {**tensors, "model.layers.0.self_attn.q_proj.bias": ("BF16", (2048,))}
    more = make_plan(PlanRequest(model_folder("llama-3.2-1b", extra), gpu=("l4",), max_model_len=2048))
    assert more.weight_bytes_per_rank - plain.weight_bytes_per_rank == 4096


def test_tied_heads_and_prediction_layers_on_disk_are_not_loaded(model_folder):
    tensors = checkpoint_tensors("llama-3.2-1b")
    plain = make_plan(PlanRequest(model_folder("llama-3.2-1b", tensors), gpu=("l4",), max_model_len=2048))
    extra = {**tensors, "lm_head.weight": ("BF16", (128_256, 2048)),
             "model.layers.16.mlp.up_proj.weight": ("BF16", (8192, 2048))}  # fmt: skip
    more = make_plan(PlanRequest(model_folder("llama-3.2-1b", extra), gpu=("l4",), max_model_len=2048))
    assert more.weight_bytes_per_rank == plain.weight_bytes_per_rank


def hub(monkeypatch, tmp_path, metadata):
    """A hub id whose configuration is in ``tmp_path`` and whose headers are ``metadata``."""
    (tmp_path / "config.json").write_text(json.dumps(load_config("llama-3.2-1b")))
    index = {"weight_map": {"model.embed_tokens.weight": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    monkeypatch.setattr(source, "resolve_model", lambda *_, **__: tmp_path)
    monkeypatch.setattr("huggingface_hub.get_safetensors_metadata", metadata)


def test_hub_models_are_read_by_their_headers(monkeypatch, tmp_path, model_folder):
    tensors, offset, infos = checkpoint_tensors("llama-3.2-1b"), 0, {}
    for name, (dtype, shape) in tensors.items():
        size = 2
        for dim in shape:
            size *= dim
        infos[name] = SimpleNamespace(dtype=dtype, shape=list(shape), data_offsets=(offset, offset + size))
        offset += size
    files = {"model-00001-of-00002.safetensors": SimpleNamespace(tensors=infos)}
    hub(monkeypatch, tmp_path, lambda *_, **__: SimpleNamespace(files_metadata=files))
    remote = make_plan(PlanRequest("org/name", gpu=("l4",), max_model_len=2048))
    monkeypatch.undo()
    local = make_plan(PlanRequest(model_folder("llama-3.2-1b", tensors), gpu=("l4",), max_model_len=2048))
    assert remote.weight_bytes_per_rank == local.weight_bytes_per_rank
    assert remote.notes == ("headers read from the Hub",)


def test_a_hub_out_of_reach_leaves_the_config(monkeypatch, tmp_path):
    def offline(*_, **__):
        raise OSError("no route")

    hub(monkeypatch, tmp_path, offline)
    plan = make_plan(PlanRequest("org/name", gpu=("l4",), max_model_len=2048))
    assert "the Hub is unreachable" in plan.notes[0]


def test_a_repository_without_safetensors_is_refused(monkeypatch, tmp_path):
    from huggingface_hub.errors import NotASafetensorsRepoError

    def pickled(*_, **__):
        raise NotASafetensorsRepoError("none")

    hub(monkeypatch, tmp_path, pickled)
    with pytest.raises(CheckpointError, match="holds no safetensors"):
        make_plan(PlanRequest("org/name", gpu=("l4",)))


def test_a_damaged_shard_is_one_line(model_folder, tmp_path):
    folder = model_folder("llama-3.2-1b")
    write_sparse_safetensors(tmp_path / "whole", checkpoint_tensors("llama-3.2-1b"))
    with (tmp_path / "whole").open("rb") as whole:
        (tmp_path / "llama-3.2-1b" / "model.safetensors").write_bytes(whole.read(900))
    with pytest.raises(CheckpointError, match="truncated"):
        make_plan(PlanRequest(folder, gpu=("l4",)))
