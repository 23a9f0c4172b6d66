"""The command that ``plan`` prints, and that its files run, is the plan: read back with vLLM's own parser."""

from __future__ import annotations

import html
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.serve.test_passthrough import vllm_parser
from vllm_quant_serve.deploy import Target, emit
from vllm_quant_serve.deploy.from_plan import deployment_of
from vllm_quant_serve.flags import parse_args
from vllm_quant_serve.plan.api import Plan, PlanRequest, make_plan
from vllm_quant_serve.plan.options import DeviceOptions, GoalOptions
from vllm_quant_serve.plan.output.html import page
from vllm_quant_serve.plan.output.render import command_line
from vllm_quant_serve.planning import plan_request

QUESTIONS: list[tuple[str, dict[str, Any]]] = [
    ("llama-3.1-8b", {"gpu": ("h100:4",)}),
    ("llama-3.1-8b", {"gpu": ("h100:4",), "tensor_parallel_size": 2, "max_model_len": 4096, "max_num_seqs": 17}),
    ("llama-3.1-8b", {"gpu": ("l4:2",), "kv_cache_dtype": "fp8", "gpu_memory_utilization": 0.8}),
    ("llama-3.1-8b", {"gpu": ("h100",), "quantization": "vqp_fp8", "dtype": "half", "enforce_eager": True}),
    ("llama-3.1-8b", {"gpu": ("t4:4",), "max_model_len": 2048}),
    ("llama-3.1-8b", {"gpu": ("h100:8",), "objective": "throughput", "block_size": 32}),
    ("llama-3.1-8b", {"gpu": ("h100",), "kv_cache_memory": 8 << 30, "max_num_batched_tokens": 1024}),
    ("llama-3.1-8b", {"gpu": ("h100",), "slo_tpot": 0.01, "concurrency": 4}),
    ("llama-3.1-8b", {"gpu": ("rtx3090:2",), "pipeline_parallel_size": 2, "tensor_parallel_size": 1}),
    ("llama-3.1-8b", {"cpu_memory": 64 << 30, "max_model_len": 4096, "dtype": "float16"}),
    ("llama-3.3-70b", {"gpu": ("h100:2",)}),
    ("qwen3-30b-a3b", {"gpu": ("h100:4",), "enable_expert_parallel": True, "tensor_parallel_size": 4}),
    ("llama-3.1-8b", {"gpu": ("h100",), "revision": "main", "quantization_config": {"quant_method": "vqp_int8"}}),
]


@pytest.fixture(scope="module")
def parser():
    return vllm_parser()


def check(plan: Plan, request: PlanRequest, context_length: int, parsed: Any) -> None:
    """Every field that a flag can change; None and ``auto`` stand for vLLM's default, which is then the plan's."""
    assert parsed.model_tag == plan.model or parsed.model == plan.model
    assert parsed.tensor_parallel_size == plan.tensor_parallel_size
    assert parsed.pipeline_parallel_size == plan.pipeline_parallel_size
    assert (parsed.data_parallel_size or 1) == plan.data_parallel_size
    assert bool(parsed.enable_expert_parallel) == plan.expert_parallel
    assert (parsed.max_model_len or context_length) == plan.max_model_len
    assert parsed.gpu_memory_utilization == pytest.approx(plan.gpu_memory_utilization)
    assert parsed.kv_cache_dtype == plan.kv_cache_dtype
    assert parsed.kv_cache_memory_bytes == plan.kv_cache_memory
    assert (parsed.max_num_seqs or plan.max_num_seqs) == plan.max_num_seqs
    if request.max_num_seqs or request.slo_tpot:
        assert parsed.max_num_seqs == plan.max_num_seqs
    assert (parsed.block_size or plan.block_size) == plan.block_size
    assert (parsed.block_size is not None) == (request.block_size is not None)
    assert parsed.max_num_batched_tokens == request.max_num_batched_tokens
    assert parsed.quantization == request.quantization
    assert parsed.dtype in ("auto", plan.dtype)
    assert (parsed.dtype == "auto") <= (request.dtype == "auto")
    assert parsed.enforce_eager == request.enforce_eager
    assert parsed.revision == request.revision
    assert (parsed.hf_overrides or {}).get("quantization_config") == request.quantization_config


@pytest.mark.parametrize(("name", "options"), QUESTIONS, ids=lambda value: str(value)[:60])
def test_the_command_is_the_plan(model_folder, parser, name, options):
    request = PlanRequest(model_folder(name), **options)
    plan = make_plan(request)
    longest = json.loads(Path(request.model, "config.json").read_text())["max_position_embeddings"]
    words = shlex.split(command_line(plan))
    words = words[words.index("vllm") :]
    assert words[:3] == ["vllm", "serve", plan.model]
    check(plan, request, longest, parser.parse_args(words[2:]))
    assert plan.to_dict()["serve_args"] == words[3:]
    assert shlex.join(words) in html.unescape(page(plan, [])), "the report shows the same line"


@pytest.mark.parametrize(("name", "options"), QUESTIONS[:3] + QUESTIONS[9:10], ids=lambda value: str(value)[:60])
def test_the_files_run_the_plan(model_folder, parser, name, options):
    """What follows ``vllm-quant serve`` in each kind of file, read by vLLM's parser and again by the planner."""
    request = PlanRequest(model_folder(name), **options)
    plan = make_plan(request)
    deployment = deployment_of(request, plan, "image")
    longest = json.loads(Path(request.model, "config.json").read_text())["max_position_embeddings"]
    unit, compose = emit(Target.SYSTEMD, deployment), yaml.safe_load(emit(Target.COMPOSE, deployment))
    pod = next(yaml.safe_load_all(emit(Target.K8S, deployment)))["spec"]["template"]["spec"]
    line = next(line for line in unit.splitlines() if line.startswith("ExecStart="))
    for words in (
        shlex.split(line.partition("=")[2])[2:],
        compose["services"]["server"]["command"][1:],
        pod["containers"][0]["args"],
    ):
        assert words[0] == plan.model
        parsed = parser.parse_known_args(words)[0]
        check(plan, request, longest, parsed)
        if "gpu" not in options:
            continue  # this host has other memory than the one that was planned for
        again = make_plan(plan_request(parse_args(words), DeviceOptions(list(options["gpu"])), GoalOptions()))
        for field in ("tensor_parallel_size", "max_model_len", "kv_cache_dtype", "gpu_memory_utilization", "kv_tokens"):
            assert getattr(again, field) == getattr(plan, field)


def test_variables_are_part_of_the_plan(model_folder, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "3")
    request = PlanRequest(model_folder("llama-3.2-1b"), cpu_memory=64 << 30)
    plan = make_plan(request)
    assert command_line(plan).startswith("VLLM_CPU_KVCACHE_SPACE=3 vllm serve ")
    assert plan.kv_bytes.value == 3 << 30
