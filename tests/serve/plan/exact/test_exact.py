"""The analytic planner equals vLLM itself: weights, KV blocks and refusals for real configurations.

``vllm-0.32.0.json`` holds vLLM's answers at pinned KV bytes for every file in ``configs`` at eight
placements (``benchmarks/planner_accuracy.py --record``); the engine tests ask vLLM again.
"""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from vllm_quant_plugin.architecture.families import describe
from vllm_quant_plugin.errors import BackendError
from vllm_quant_serve.plan.api import PlanRequest, make_plan
from vllm_quant_serve.plan.devices.cpu import cpu_flags
from vllm_quant_serve.plan.devices.gpus import GIB
from vllm_quant_serve.plan.exact.ask import ExactAnswer, ExactJob, ask_vllm

HERE = Path(__file__).parents[1]
SCRIPT = Path(__file__).parents[4] / "benchmarks" / "planner_accuracy.py"
RECORD = json.loads((HERE / "vllm-0.32.0.json").read_text())
NAMES = sorted({row["name"] for row in RECORD["answers"]})
FIELDS = ("error", "weights", "blocks", "tokens", "block_size", "in_flight", "architecture")
# One configuration for each way of building layers or caches, at placements that cut them.
LIVE = {
    "llama-3.2-3b": (4, 1), "llama-2-7b-awq": (2, 1), "qwen2.5-7b": (8, 1), "gemma-2-9b": (2, 1), "gpt-oss-20b": (2, 1),
    "deepseek-v2-lite": (1, 3), "qwen3-30b-a3b": (2, 2), "llama-4-scout-text": (2, 1), "falcon-h1-0.5b": (2, 1),
    "granite-4.0-h-tiny": (2, 2), "qwen3-next-80b-a3b": (2, 1), "lfm2-1.2b": (1, 3), "mamba2-2.7b": (2, 1),
    "starcoder2-7b": (4, 1), "whisper-large-v3-turbo": (2, 1), "jamba-v0.1": (2, 1), "zamba2-7b": (2, 1),
    "gemma-3n-e2b-text": (2, 1), "gemma-4-e2b-text": (2, 1), "gemma-4-26b-a4b-text": (1, 3), "lfm2-8b-a1b": (2, 1),
    "bamba-9b": (1, 1),
}  # fmt: skip


@pytest.fixture(scope="module")
def accuracy():
    spec = importlib.util.spec_from_file_location("planner_accuracy", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["planner_accuracy"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["planner_accuracy"]


def answer_of(row: dict) -> ExactAnswer:
    fields = {key: row[key] for key in FIELDS}
    return ExactAnswer(**{**fields, "weights": tuple(row["weights"])})


def test_every_config_file_has_a_recorded_answer():
    assert sorted(path.stem for path in (HERE / "configs").glob("*.json")) == NAMES
    assert len(NAMES) >= 40
    assert sum(not row["error"] for row in RECORD["answers"]) > 400


@pytest.mark.parametrize("name", NAMES)
def test_analytic_equals_recorded(name, accuracy):
    config = accuracy.load(name)
    assert RECORD["kv_bytes"] == accuracy.KV_BYTES
    for row in (row for row in RECORD["answers"] if row["name"] == name):
        answer, where = answer_of(row), f"{name} TP {row['tp']} PP {row['pp']}"
        if answer.error.startswith(accuracy.CPU_ONLY):
            continue
        ours = accuracy.planned(config, row["tp"], row["pp"], answer)
        if accuracy.STRICTER in ours["refusal"]:
            assert "quantization_config" in config, where
            continue
        assert bool(ours["refusal"]) == bool(answer.error), f"{where}: {ours['refusal']!r} against {answer.error!r}"
        if answer.error:
            continue
        assert ours["weights"] == ours["vllm_weights"], where
        assert (ours["blocks"], ours["tokens"]) == (answer.blocks, answer.tokens), where


def has_states(config):
    return any(cache.kind == "mamba" for cache in describe(config).caches)


@pytest.mark.engine
def test_recorded_answers_are_what_vllm_says_now(accuracy, tmp_path, monkeypatch):
    """vLLM without this plugin, which claims some of these checkpoints on CPUs without AVX-512."""
    monkeypatch.setenv("VLLM_PLUGINS", "")
    jobs, rows = [], []
    for name, (tp, pp) in LIVE.items():
        folder = tmp_path / name
        folder.mkdir()
        config = accuracy.load(name)
        (folder / "config.json").write_text(json.dumps(config))
        length = accuracy.length_of(config)
        jobs.append(ExactJob(str(folder), accuracy.KV_BYTES, tp, pp, max_model_len=length, max_num_batched_tokens=2048))
        rows.append(next(r for r in RECORD["answers"] if (r["name"], r["tp"], r["pp"]) == (name, tp, pp)))
    for row, answer in zip(rows, ask_vllm(jobs), strict=True):
        recorded = answer_of(row)
        if not recorded.error and has_states(accuracy.load(row["name"])) and "avx512_bf16" not in cpu_flags():
            # The record is of a CPU with AVX-512 BF16, on which vLLM keeps states in float32 and so in other blocks.
            recorded = replace(recorded, blocks=answer.blocks, tokens=answer.tokens, block_size=answer.block_size)
        assert recorded == ExactAnswer(**{key: getattr(answer, key) for key in FIELDS}), row["name"]


@pytest.mark.engine
def test_exact_plan_says_that_vllm_agrees(model_folder):
    plan = make_plan(PlanRequest(model_folder("llama-3.2-1b"), gpu=("l4:2",), tensor_parallel_size=2, exact=True))
    assert plan.exact is not None
    assert plan.exact["agrees"] is True
    assert plan.exact["weight_bytes"] < plan.weight_bytes_per_rank  # the cos/sin table is no parameter


@pytest.mark.engine
def test_vllm_agrees_with_uneven_stages(model_folder):
    """Stages of several kinds of GPU, which vLLM cuts by VLLM_PP_LAYER_PARTITION."""
    request = PlanRequest(
        model_folder("llama-3.2-1b"), gpu=("rtx4090,rtx3060",), pipeline_parallel_size=2, max_model_len=4096, exact=True
    )
    plan = make_plan(request)
    assert plan.stage_layers[0] > plan.stage_layers[1]
    assert plan.exact is not None
    assert plan.exact["agrees"] is True


def test_a_missing_vllm_is_one_clear_line(monkeypatch, model_folder):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(BackendError, match="vLLM could not be asked"):
        list(ask_vllm([ExactJob(model_folder("llama-3.2-1b"), GIB)]))


def test_spread_experts_cannot_be_asked_about(model_folder):
    request = PlanRequest(
        model_folder("qwen3-30b-a3b"), gpu=("h100:2",), tensor_parallel_size=2, enable_expert_parallel=True,
        max_model_len=4096, exact=True,
    )  # fmt: skip
    with pytest.raises(BackendError, match="expert parallelism"):
        make_plan(request)
