"""What the planner changes so that a model fits, and what it never does."""

import pytest

from vllm_quant_plugin.errors import CheckpointError, NoFeasiblePlanError
from vllm_quant_plugin.formats import get_format, parse_quantization_config
from vllm_quant_serve.plan.api import PlanRequest, make_plan
from vllm_quant_serve.plan.devices.gpus import GIB
from vllm_quant_serve.plan.memory.overhead import all_reduce_bytes, overheads_of


def test_an_8_bit_cache_is_taken_where_nothing_else_fits(model_folder):
    folder = model_folder("llama-3.1-8b")
    plan = make_plan(PlanRequest(folder, gpu=("rtx4090",), max_model_len=60_000))
    assert plan.flags == {
        "--max-model-len": "60000", "--max-num-seqs": "64", "--gpu-memory-utilization": "0.95",
        "--kv-cache-dtype": "fp8",
    }  # fmt: skip
    assert plan.kv_cache_dtype == "fp8"
    assert plan.kv_bytes_per_token == 32 * 8 * 128 * 2
    assert any("fits only with" in note for note in plan.notes)
    assert any(c.feasible and "fp8" in c.change for c in plan.candidates)
    again = make_plan(
        PlanRequest(folder, gpu=("rtx4090",), max_model_len=60_000, max_num_seqs=64, gpu_memory_utilization=0.95,
                    kv_cache_dtype="fp8")
    )  # fmt: skip
    assert again.kv_blocks == plan.kv_blocks


def test_what_the_user_set_is_not_changed(model_folder):
    folder = model_folder("llama-3.1-8b")
    fixed = {"max_num_seqs": 256, "gpu_memory_utilization": 0.9, "kv_cache_dtype": "bfloat16"}
    with pytest.raises(NoFeasiblePlanError, match=r"60,000 tokens needs 7\.33 GiB"):
        make_plan(PlanRequest(folder, gpu=("rtx4090",), max_model_len=60_000, **fixed))


def test_gpus_without_fp8_kernels_get_no_fp8_cache(model_folder):
    with pytest.raises(NoFeasiblePlanError):
        make_plan(PlanRequest(model_folder("llama-3.1-8b"), gpu=("rtx3090",), max_model_len=80_000))


def test_the_context_is_shortened_before_the_cache_loses_bits(model_folder):
    plan = make_plan(PlanRequest(model_folder("llama-3.1-8b"), gpu=("rtx4090",)))
    assert plan.kv_cache_dtype == "auto"
    assert 2048 <= plan.max_model_len < 131_072


def test_a_limit_on_the_token_time_sets_the_batch(model_folder):
    folder = model_folder("llama-3.3-70b")
    base = {"gpu": ("h100:4",), "max_model_len": 2048, "concurrency": 8, "kv_cache_dtype": "bfloat16"}
    free = make_plan(PlanRequest(folder, **base))
    limited = make_plan(PlanRequest(folder, **base, slo_tpot=0.020))
    assert free.prediction is not None
    assert limited.prediction is not None
    assert 8 <= limited.max_num_seqs < free.max_num_seqs
    assert limited.flags["--max-num-seqs"] == str(limited.max_num_seqs)
    assert limited.prediction.tpot <= 0.020
    at_limit = make_plan(PlanRequest(folder, **{**base, "concurrency": limited.max_num_seqs}))
    beyond = make_plan(PlanRequest(folder, **{**base, "concurrency": limited.max_num_seqs + 2}))
    assert at_limit.prediction is not None
    assert beyond.prediction is not None
    assert at_limit.prediction.tpot <= 0.020 < beyond.prediction.tpot


def test_recurrent_states_bound_the_number_of_sequences(model_folder):
    folder = model_folder("falcon-h1-7b")
    plan = make_plan(PlanRequest(folder, gpu=("h100",), max_model_len=8192))
    assert plan.max_num_seqs <= plan.kv_blocks  # vLLM refuses more when it captures CUDA graphs
    assert plan.flags["--max-num-seqs"] == str(plan.max_num_seqs)
    with pytest.raises(NoFeasiblePlanError, match="state blocks"):
        make_plan(PlanRequest(folder, gpu=("h100",), max_model_len=8192, max_num_seqs=1024))
    eager = make_plan(PlanRequest(folder, gpu=("h100",), max_model_len=8192, max_num_seqs=1024, enforce_eager=True))
    assert eager.max_num_seqs == 1024


def test_all_of_the_memory_is_not_to_be_had(model_folder):
    with pytest.raises(NoFeasiblePlanError, match="free beside the CUDA context"):
        make_plan(PlanRequest(model_folder("llama-3.1-8b"), gpu=("h100",), gpu_memory_utilization=1.0))


def test_cross_attention_keeps_the_encoders_tokens(model_folder):
    plan = make_plan(PlanRequest(model_folder("whisper-large-v3"), gpu=("l4",)))
    assert plan.max_model_len == 448
    assert plan.kv_bytes_per_token == 32 * 20 * 64 * 2 * 2  # of the decoder's own cache
    blocks_per_request = round(plan.kv_blocks / plan.max_concurrency)
    assert blocks_per_request == 448 // 16 + 2048 // 16


def test_layers_that_read_another_cache_hold_none(model_folder):
    plan = make_plan(PlanRequest(model_folder("gemma-3n-e4b-text"), gpu=("l40s",), max_model_len=8192))
    whole = make_plan(
        PlanRequest(model_folder("gemma-3n-e4b-text", num_kv_shared_layers=0), gpu=("l40s",), max_model_len=8192)
    )
    assert plan.kv_tokens.value > 1.5 * whole.kv_tokens.value


def test_a_stage_without_the_cache_it_reads_is_refused(model_folder):
    with pytest.raises(NoFeasiblePlanError, match=r"reads the cache of layer 1[34]"):
        make_plan(PlanRequest(model_folder("gemma-4-e2b-text"), gpu=("l4:2",), pipeline_parallel_size=2))


def test_an_unknown_family_with_experts_is_not_guessed(model_folder):
    folder = model_folder("qwen3-30b-a3b", model_type="brand_new_moe", architectures=["BrandNewMoeForCausalLM"])
    with pytest.raises(CheckpointError, match="'brand_new_moe' is unknown and has experts"):
        make_plan(PlanRequest(folder, gpu=("h100:8",)))


@pytest.mark.parametrize(
    ("options", "nbytes"),
    [
        ({"load_in_4bit": True}, 256 * 1024 // 2 + 256 * 1024 // 64 * 4 + 64),
        ({"load_in_4bit": True, "bnb_4bit_use_double_quant": True},
         256 * 1024 // 2 + 4096 + 4096 // 256 * 4 + 4 + 1024 + 64),
        ({"load_in_8bit": True}, 256 * 1024 + 256 * 4),
    ],
)  # fmt: skip
def test_bitsandbytes_is_weighed_and_refused(model_folder, options, nbytes):
    config = {"quant_method": "bitsandbytes", **options}
    scheme = parse_quantization_config(config)
    assert scheme.default is not None
    assert get_format(scheme.default).in_tree_bytes(scheme.default, 256, 1024, 1024, 2) == nbytes
    with pytest.raises(NoFeasiblePlanError, match=r"no bitsandbytes method any more; the weights would take \d"):
        make_plan(PlanRequest(model_folder("llama-3.1-8b", quantization_config=config), gpu=("h100",)))


def test_overheads_are_of_the_version_and_the_gpu():
    hopper, ampere = overheads_of("0.32.0", (9, 0)), overheads_of("0.32.0", (8, 0))
    assert hopper != ampere
    assert overheads_of("0.33.1", (9, 0)) == hopper
    assert overheads_of("9.99", (11, 0)) == overheads_of("0.32.0", (10, 0))  # the newest that is known
    assert all_reduce_bytes((9, 0), 2) == (2 * 8 + 64) << 20
    assert all_reduce_bytes((8, 0), 4) == 16 << 20
    assert all_reduce_bytes((9, 0), 3) == all_reduce_bytes((9, 0), 1) == 0


def test_cpu_defaults_grow_with_the_ranks(model_folder):
    folder = model_folder("gemma-2-9b")
    one = make_plan(PlanRequest(folder, cpu_memory=128 * GIB, max_model_len=8192))
    two = make_plan(PlanRequest(folder, cpu_memory=128 * GIB, max_model_len=8192, tensor_parallel_size=2))
    assert (one.max_num_seqs, two.max_num_seqs) == (128, 256)
