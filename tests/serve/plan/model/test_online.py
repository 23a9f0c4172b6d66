"""What quantization while loading means to the planner is what the methods themselves do."""

import json

import pytest

from vllm_quant_kernels.scheme import E4M3, Int
from vllm_quant_plugin.errors import CheckpointError
from vllm_quant_serve.flags import parse_args
from vllm_quant_serve.plan.api import PlanRequest, make_plan
from vllm_quant_serve.plan.model.load import load_model
from vllm_quant_serve.plan.options import DeviceOptions, GoalOptions
from vllm_quant_serve.planning import peaks_of, plan_request


def online(folder, quantization, **options):
    return load_model(PlanRequest(folder, quantization=quantization, quantization_config=options or None)).scheme


@pytest.mark.parametrize(
    ("quantization", "options", "value"),
    [
        ("vqp_fp8", {}, E4M3),
        ("vqp_int8", {}, Int(8)),
        ("int8", {}, Int(8)),
        ("vqp_fp8", {"activations": "none"}, None),
        ("vqp_int8", {"activations": "none", "group_size": 128}, None),
    ],
)
def test_activations_are_planned_as_the_method_serves_them(model_folder, quantization, options, value):
    pytest.importorskip("vllm")
    from vllm_quant_plugin.methods.config import config_class

    config = config_class("vqp_fp8" if "fp8" in quantization else "vqp_int8")
    served = config.from_config({"quant_method": quantization, **options}).model
    scheme = online(model_folder("llama-3.2-1b"), quantization, **options)
    assert (scheme.method, scheme.default, scheme.rules) == (served.method, served.default, served.rules)
    assert (scheme.default.activation.value if scheme.default.activation else None) == value


def test_options_change_the_bytes(model_folder):
    """One float32 scale per block of 128 x 128 instead of one per output channel, as vLLM's kernels keep them."""
    folder = model_folder("llama-3.1-8b")

    def weights(**options):
        request = PlanRequest(folder, gpu=("h100",), max_model_len=4096, quantization="vqp_fp8",
                              quantization_config=options)  # fmt: skip
        return make_plan(request).weight_bytes_per_rank

    more = weights(weight_block_size=[128, 128]) - weights()
    linear = 32 * (4096 * (4096 + 2 * 1024) + 4096 * 4096 + 3 * 14336 * 4096)
    rows = 32 * (4096 + 2 * 1024 + 4096 + 2 * 14336 + 4096)
    assert more == 4 * (linear // 128**2 - rows)


def test_excluded_modules_stay_in_16_bits(model_folder):
    scheme = online(model_folder("llama-3.2-1b"), "vqp_int8", modules_to_not_convert=["down_proj"])
    assert scheme.scheme_for("model.layers.0.mlp.down_proj") is None
    assert scheme.scheme_for("model.layers.0.mlp.up_proj") is not None


def test_unknown_options_are_refused_before_a_launch(model_folder):
    with pytest.raises(CheckpointError, match="weight_block_sise"):
        online(model_folder("llama-3.2-1b"), "vqp_fp8", weight_block_sise=[128, 128])
    with pytest.raises(CheckpointError, match="in 16 bits"):
        online(model_folder("llama-3.2-1b"), "vqp_awq")


def test_serve_hands_the_overridden_options_to_the_planner(model_folder):
    overrides = json.dumps({"quantization_config": {"quant_method": "vqp_fp8", "activations": "none"}})
    words = parse_args([model_folder("llama-3.2-1b"), "--hf-overrides", overrides])
    request = plan_request(words, DeviceOptions(["h100"]), GoalOptions())
    plan = make_plan(request)
    assert plan.quantization.startswith("FP8")
    assert plan.compute_dtype == "bf16"
    assert peaks_of(request, plan) == {"bandwidth": 3.35e12, "flops": 989e12}
    words = parse_args([model_folder("llama-3.2-1b"), "--quantization", "vqp_fp8"])
    request = plan_request(words, DeviceOptions(["h100"]), GoalOptions())
    assert peaks_of(request, make_plan(request)) == {"bandwidth": 3.35e12, "flops": 1979e12}


def test_a_gpu_without_fp8_tensor_cores_computes_in_16_bits(model_folder):
    request = PlanRequest(model_folder("llama-3.2-1b"), gpu=("a100",), quantization="vqp_fp8")
    assert make_plan(request).compute_dtype == "bf16"
    request = PlanRequest(model_folder("llama-3.2-1b"), gpu=("a100",), quantization="vqp_int8")
    assert make_plan(request).compute_dtype == "int8"
