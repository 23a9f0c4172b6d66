"""Plans of well-known models against figures worked out by hand from their published shapes."""

import dataclasses
import json

import pytest

from tests.serve.plan.conftest import load_config
from vllm_quant_plugin.errors import CheckpointError, NoFeasiblePlanError, UsageError
from vllm_quant_serve.flags import parse_args
from vllm_quant_serve.launch import drop_user_set
from vllm_quant_serve.plan.api import PlanRequest, make_plan
from vllm_quant_serve.plan.devices.gpus import GIB, find_gpu
from vllm_quant_serve.plan.devices.pool import Devices

LLAMA_8B_PARAMETERS = 8_030_261_248  # model card of Llama 3.1 8B
LLAMA_70B_PARAMETERS = 70_553_706_496
LLAMA_8B_ROPE = 131_072 * 128 * 2  # cos/sin table in bfloat16


def test_llama_8b_on_one_h100(model_folder):
    plan = make_plan(PlanRequest(model_folder("llama-3.1-8b"), gpu=("h100",)))
    assert plan.tensor_parallel_size == 1
    assert plan.weight_bytes_per_rank == 2 * LLAMA_8B_PARAMETERS + LLAMA_8B_ROPE
    assert plan.kv_bytes_per_token == 2 * 32 * 8 * 128 * 2  # K and V, layers, KV heads, head_dim, bytes
    assert plan.max_model_len == 131_072
    assert plan.kv_tokens.low <= plan.kv_tokens.value <= plan.kv_tokens.high
    assert plan.kv_tokens.value == plan.kv_bytes.value // (16 * plan.kv_bytes_per_token) * 16
    assert plan.serve_args() == []


def test_llama_70b_takes_the_smallest_tp_that_holds_it(model_folder):
    plan = make_plan(PlanRequest(model_folder("llama-3.3-70b"), gpu=("h100:8",), max_model_len=8192, concurrency=4))
    assert plan.tensor_parallel_size == 4
    assert plan.serve_args()[:2] == ["--tensor-parallel-size", "4"]
    norms = (2 * 80 + 1) * 8192 * 2
    expected = (2 * LLAMA_70B_PARAMETERS - norms) // 4 + norms + LLAMA_8B_ROPE
    assert plan.weight_bytes_per_rank == expected
    reasons = {c.tensor_parallel_size: c.reason for c in plan.candidates if c.pipeline_parallel_size == 1}
    assert "64 attention heads do not divide by 3" in reasons[3]
    assert "exceed" in reasons[1]


def test_kv_heads_are_replicated_beyond_their_number(model_folder):
    folder = model_folder("qwen2.5-7b")
    four = make_plan(PlanRequest(folder, gpu=("l4:28",), tensor_parallel_size=4))
    assert four.kv_bytes_per_token == 2 * 28 * 1 * 128 * 2
    with pytest.raises(NoFeasiblePlanError, match="28 attention heads do not divide by 8"):
        make_plan(PlanRequest(folder, gpu=("l4:8",), tensor_parallel_size=8))


def test_awq_group_against_shard_names_the_sizes_that_work(model_folder):
    folder = model_folder("llama-2-7b-awq")
    with pytest.raises(NoFeasiblePlanError) as caught:
        make_plan(PlanRequest(folder, gpu=("a10:8",), tensor_parallel_size=4))
    assert "down_proj 11008/4 = 2752 is not a multiple of group 128; TP 2 works" in caught.value.message
    assert "legal here: 1, 2" in caught.value.hint


def test_awq_weights_are_codes_scales_and_zeros(model_folder):
    plan = make_plan(PlanRequest(model_folder("llama-2-7b-awq"), gpu=("a10",)))
    linear = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    others = 2 * (2 * 32_000 * 4096 + (2 * 32 + 1) * 4096) + 4096 * 128 * 2
    assert plan.weight_bytes_per_rank == linear // 2 + linear // 128 * 2 + linear // 128 // 2 + others
    assert plan.quantization == "INT4 g128 asym (awq)"


@pytest.mark.parametrize(("quantization", "scale_bytes"), [("vqp_int8", 4), ("vqp_fp8", 4)])
def test_online_quantization_halves_the_linears(model_folder, quantization, scale_bytes):
    plan = make_plan(
        PlanRequest(model_folder("llama-3.1-8b"), gpu=("l4",), quantization=quantization, max_model_len=4096)
    )
    linear = 32 * 4096 * (4096 * 2 + 2 * 1024 + 3 * 14_336)
    outputs = 32 * (4096 * 3 + 2 * 1024 + 2 * 14_336)
    assert plan.weight_bytes_per_rank == 2 * LLAMA_8B_PARAMETERS + LLAMA_8B_ROPE - linear + outputs * scale_bytes


def test_fp8_cache_doubles_the_tokens(model_folder):
    folder = model_folder("llama-3.1-8b")
    plain = make_plan(PlanRequest(folder, gpu=("h100",)))
    small = make_plan(PlanRequest(folder, gpu=("h100",), kv_cache_dtype="fp8"))
    assert small.kv_bytes_per_token * 2 == plain.kv_bytes_per_token
    assert small.kv_blocks // 2 == plain.kv_blocks


def test_without_a_length_the_longest_that_fits_is_taken(model_folder):
    plan = make_plan(PlanRequest(model_folder("llama-3.1-8b"), gpu=("rtx4090",)))
    assert 2048 <= plan.max_model_len < 131_072
    assert plan.flags["--max-model-len"] == str(plan.max_model_len)
    assert any("full context" in note for note in plan.notes)
    assert plan.kv_tokens.value >= plan.max_model_len


def test_nothing_fits_says_what_is_missing_and_how_to_mend_it(model_folder):
    with pytest.raises(NoFeasiblePlanError) as caught:
        make_plan(PlanRequest(model_folder("llama-3.3-70b"), gpu=("l4",), max_model_len=8192))
    assert caught.value.exit_code == 3
    assert "GiB of weights" in caught.value.message
    assert "8 x L4" in caught.value.hint
    assert "quantize" not in caught.value.hint  # 3 bits are too many, too


def test_the_hint_names_the_least_lossy_method_that_fits(model_folder):
    folder = model_folder("llama-3.1-8b")
    for gpu, method in (
        ("rtx4080", "FP8 (vllm-quant quantize -m fp8)"),
        ("rtx3080", "AWQ-4 (vllm-quant quantize -m awq)"),
    ):
        with pytest.raises(NoFeasiblePlanError) as caught:
            make_plan(PlanRequest(folder, gpu=(gpu,), max_model_len=4096))
        assert method in caught.value.hint


def test_too_long_for_the_cache_suggests_a_length_that_then_fits(model_folder):
    folder = model_folder("llama-3.1-8b")
    with pytest.raises(NoFeasiblePlanError) as caught:
        make_plan(PlanRequest(folder, gpu=("rtx4090",), max_model_len=131_072))
    advice = caught.value.hint.split("--max-model-len ")[1].split(",")[0]
    assert make_plan(PlanRequest(folder, gpu=("rtx4090",), max_model_len=int(advice))).max_model_len == int(advice)


def test_pipeline_where_tensor_parallelism_is_not_enough(model_folder):
    plan = make_plan(PlanRequest(model_folder("qwen2.5-7b"), gpu=("rtx3080:3",), max_model_len=4096))
    assert (plan.tensor_parallel_size, plan.pipeline_parallel_size) == (1, 3)
    assert plan.flags["--pipeline-parallel-size"] == "3"


def test_cpu_pins_the_cache(model_folder, monkeypatch):
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    plan = make_plan(PlanRequest(model_folder("llama-3.2-1b"), cpu_memory=32 * GIB, max_model_len=4096))
    assert plan.block_size == 128
    assert plan.kv_cache_memory is not None
    assert plan.flags["--kv-cache-memory-bytes"] == str(plan.kv_cache_memory)
    assert plan.kv_tokens.low == plan.kv_tokens.value == plan.kv_tokens.high


def test_cpu_obeys_vllms_variable(model_folder, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "4")
    plan = make_plan(PlanRequest(model_folder("llama-3.2-1b"), cpu_memory=32 * GIB, max_model_len=4096))
    assert plan.kv_bytes.value == 4 * GIB
    assert "--kv-cache-memory-bytes" not in plan.flags
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "lots")
    with pytest.raises(UsageError, match="whole number of GiB"):
        make_plan(PlanRequest(model_folder("llama-3.2-1b"), cpu_memory=32 * GIB))


def test_user_flags_are_never_repeated(model_folder):
    """The plan has them all; the launcher leaves out what its user typed."""
    request = PlanRequest(
        model_folder("llama-3.3-70b"), gpu=("h100:8",), tensor_parallel_size=8, max_model_len=4096, max_num_seqs=64,
        gpu_memory_utilization=0.8,
    )  # fmt: skip
    typed = make_plan(request).serve_args()
    assert typed[::2] == ["--tensor-parallel-size", "--max-model-len", "--max-num-seqs", "--gpu-memory-utilization"]
    assert drop_user_set(typed, parse_args([request.model, *typed])) == []


def test_plan_survives_json(model_folder):
    plan = make_plan(PlanRequest(model_folder("llama-3.1-8b"), gpu=("h100:2",)))
    data = json.loads(json.dumps(plan.to_dict()))
    assert data["serve_args"] == plan.serve_args()
    assert set(data) == {f.name for f in dataclasses.fields(plan)} | {"serve_args"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gpu": ("h1000",)}, "not in the table"),
        ({"gpu": ("h100:0",)}, "not a number of GPUs"),
        ({"gpu": ("h100:x",)}, "not a number of GPUs"),
        ({"gpu": ("h100",), "cpu": True}, "exclude each other"),
        ({"gpu": ("h100", "l4"), "gpu_memory": GIB}, "GPUs of one kind"),
        ({"gpu": ("h100:2,l4",), "nodes": 2}, "GPUs of one kind"),
        ({"gpu": ("h100:2",), "nodes": 0}, "--nodes 0"),
        ({"cpu": True, "nodes": 2}, "--nodes is for GPUs"),
        ({"gpu": ("h100",), "max_model_len": 0}, "--max-model-len 0"),
        ({"gpu": ("h100",), "concurrency": -1}, "--concurrency -1"),
        ({"gpu": ("h100",), "gpu_memory_utilization": 1.5}, "out of range"),
        ({"gpu": ("h100",), "kv_cache_dtype": "int3"}, "--kv-cache-dtype int3"),
        ({"gpu": ("h100",), "dtype": "float17"}, "--dtype float17"),
    ],
)
def test_usage_errors(model_folder, fields, message):
    with pytest.raises(UsageError, match=message):
        make_plan(PlanRequest(model_folder("llama-3.1-8b"), **fields))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_hidden_layers": "32"}, "num_hidden_layers must be an integer"),
        ({"hidden_size": -1}, "hidden_size = -1 is out of range"),
        ({"vocab_size": 10**40}, "a huge number"),
        ({"num_attention_heads": None}, "num_attention_heads is missing"),
        ({"num_attention_heads": 8192, "head_dim": None}, "8192 heads for hidden_size 4096"),
        ({"quantization_config": {"quant_method": "awq", "bits": 1, "group_size": 128}}, "AWQ with 1 bits"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 9, "group_size": 128}}, "GPTQ with 9 bits"),
        ({"quantization_config": {"quant_method": "xyz"}}, "'xyz'"),
        ({"quantization_config": ["awq"]}, "quantization_config must be an object"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128, "dynamic": 3}}, "malformed"),
        ({"quantization_config": {"quant_method": "gguf"}}, "no gguf method"),
    ],
)
def test_bad_configs(model_folder, overrides, message):
    with pytest.raises(CheckpointError, match=message):
        make_plan(PlanRequest(model_folder("llama-3.1-8b", **overrides), gpu=("h100",)))


def test_online_quantization_of_a_quantized_name_is_refused(model_folder):
    with pytest.raises(UsageError, match=r"vqp_itn8 is unknown .did you mean vqp_int8"):
        make_plan(PlanRequest(model_folder("llama-3.1-8b"), gpu=("h100",), quantization="vqp_itn8"))
    with pytest.raises(CheckpointError, match="needs a quantized checkpoint"):
        make_plan(PlanRequest(model_folder("llama-3.1-8b"), gpu=("h100",), quantization="vqp_gptq"))


def test_pipelines_across_hosts_tensor_parallelism_within(model_folder):
    plan = make_plan(PlanRequest(model_folder("llama-3.1-405b"), gpu=("h100:16",), max_model_len=8192))
    assert (plan.tensor_parallel_size, plan.pipeline_parallel_size) == (4, 3)  # twelve are enough
    assert plan.flags["--distributed-executor-backend"] == "ray"
    assert any("spans 2 hosts" in note for note in plan.notes)
    reasons = [c.reason for c in plan.candidates if c.tensor_parallel_size == 16]
    assert "would cross hosts of 8 GPUs" in reasons[0]


def test_architectures_that_vllm_dropped_are_refused(model_folder):
    folder = model_folder("llama-2-7b", architectures=["BaichuanForCausalLM"], model_type="baichuan")
    with pytest.raises(NoFeasiblePlanError, match=r"0\.23\.0 was the last version that served Baichuan"):
        make_plan(PlanRequest(folder, gpu=("h100",)))


def test_multimodal_configs_plan_their_text_model_and_their_tower(model_folder):
    text = load_config("gemma-3-27b-text")
    folder = model_folder("gemma-3-27b-text", architectures=["Gemma3ForConditionalGeneration"], model_type="gemma3",
                          text_config=text, vision_config={"hidden_size": 1152, "intermediate_size": 4304})  # fmt: skip
    request = {"gpu": ("h100",), "max_model_len": 8192}
    plan = make_plan(PlanRequest(folder, **request))
    assert not any("vision tower is not counted" in note for note in plan.notes)
    plain = make_plan(PlanRequest(model_folder("gemma-3-27b-text"), **request))
    assert plan.kv_bytes_per_token == plain.kv_bytes_per_token
    assert plan.weight_bytes_per_rank > plain.weight_bytes_per_rank


def test_partly_used_gpus_lower_the_utilization(model_folder, monkeypatch):
    busy = Devices(find_gpu("l40s"), 2, free=16 * GIB, note="this host, by NVML")
    monkeypatch.setattr("vllm_quant_serve.plan.api.resolve_pools", lambda _: (busy,))
    plan = make_plan(PlanRequest(model_folder("llama-3.1-8b"), max_model_len=4096))
    assert plan.tensor_parallel_size == 2  # one GPU has 16 GiB left of 44
    # 16 GiB are free, of which vLLM's own CUDA context takes 0.39 before vLLM looks: 15.61 / 44.3.
    assert plan.gpu_memory_utilization == pytest.approx(0.35)
    assert plan.flags["--gpu-memory-utilization"] == "0.35"
    assert any("other processes hold 28.3 GiB" in note for note in plan.notes)
