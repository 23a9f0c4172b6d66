"""Objectives, service levels and the roofline behind them."""

import pytest

from vllm_quant_plugin.architecture.placement import Placement
from vllm_quant_plugin.errors import NoFeasiblePlanError, UsageError
from vllm_quant_serve.plan.api import PlanRequest, make_plan
from vllm_quant_serve.plan.devices.resolve import resolve_devices
from vllm_quant_serve.plan.model.load import load_model
from vllm_quant_serve.plan.search.context import load_context
from vllm_quant_serve.plan.search.roofline import BANDWIDTH_SHARE, STEP_SECONDS, Roofline, Workload


def roofline(model: str, place: Placement | None = None, **fields) -> Roofline:
    request = PlanRequest(model, gpu=("h100:8",), **fields)
    return Roofline(load_context(request, load_model(request), resolve_devices(request)), place or Placement())


def test_one_request_decodes_at_the_speed_of_the_weights(model_folder):
    found = roofline(model_folder("llama-3.1-8b")).decode(1, 1024)
    weights = 2 * (8_030_261_248 - 128_256 * 4096)  # the embedding is looked up, not read
    cache = 1024 * 131_072
    assert found == pytest.approx((weights + cache) / (3.35e12 * BANDWIDTH_SHARE) + STEP_SECONDS, rel=1e-3)


def test_prefill_is_bound_by_flops(model_folder):
    line = roofline(model_folder("llama-3.1-8b"))
    assert line.prefill(8192) > 1.9 * line.prefill(4096)
    assert line.prefill(8192) > 2 * 8192 * 7.5e9 / 989e12


def test_eight_bit_activations_use_the_eight_bit_rate(model_folder):
    config = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    wide = roofline(model_folder("llama-3.1-8b"))
    narrow = roofline(model_folder("llama-3.1-8b", quantization_config=config))
    assert narrow.flops == pytest.approx(2 * wide.flops, rel=0.01)


def test_a_sparse_model_reads_more_experts_with_more_tokens(model_folder):
    line = roofline(model_folder("qwen3-30b-a3b"))
    assert line.experts_touched(1) == pytest.approx(8 / 128)
    assert line.experts_touched(1) < line.experts_touched(16) < line.experts_touched(512) <= 1.0
    assert line.decode(16, 512) < 16 * line.decode(1, 512)


def test_sliding_layers_stop_growing(model_folder):
    line = roofline(model_folder("gemma-3-1b"))
    assert line.decode(64, 30_000) < 8 * line.decode(64, 1000)


def test_more_ranks_answer_sooner_and_less_efficiently(model_folder):
    folder = model_folder("llama-3.1-8b")
    load = Workload(1024, 256, 8)
    one, four = (roofline(folder, Placement(tp)).speed(load, 64) for tp in (1, 4))
    assert four.tpot < one.tpot
    assert four.ttft < one.ttft
    assert four.tokens_per_second_per_device < one.tokens_per_second_per_device


@pytest.mark.parametrize(("objective", "place"), [("fewest-gpus", (1, 1)), ("latency", (8, 1)), ("throughput", (1, 8))])
def test_objectives(model_folder, objective, place):
    plan = make_plan(
        PlanRequest(model_folder("llama-3.1-8b"), gpu=("h100:8",), max_model_len=4096, objective=objective)
    )
    assert (plan.tensor_parallel_size, plan.data_parallel_size) == place
    assert plan.prediction is not None
    assert plan.prediction.tokens_per_second > 0


def test_cost_is_the_price_of_the_tokens(model_folder):
    request = PlanRequest(
        model_folder("llama-3.1-8b"), gpu=("h100:4",), max_model_len=4096, objective="cost", price=3.6
    )
    found = make_plan(request).prediction
    assert found is not None
    assert found.cost_per_million == pytest.approx(0.001 * 1e6 / found.tokens_per_second_per_device)


def test_service_levels_take_more_devices_or_are_refused(model_folder):
    folder = model_folder("llama-3.3-70b")
    base = {"gpu": ("h100:8",), "max_model_len": 4096}
    plain = make_plan(PlanRequest(folder, **base))
    assert plain.tensor_parallel_size == 4
    assert plain.prediction is not None
    quick = make_plan(PlanRequest(folder, **base, slo_tpot=plain.prediction.tpot * 0.8))
    assert quick.tensor_parallel_size == 8
    with pytest.raises(NoFeasiblePlanError, match=r"fast enough: .* ms per output token, more than 1 ms"):
        make_plan(PlanRequest(folder, **base, slo_tpot=0.001))


def test_experts_are_spread_where_they_cannot_be_cut(model_folder):
    awq = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True}
    folder = model_folder("qwen3-30b-a3b", quantization_config=awq)
    plan = make_plan(PlanRequest(folder, gpu=("l4:4",), tensor_parallel_size=4, max_model_len=2048))
    assert plan.expert_parallel  # 768 / 4 = 192 is not a multiple of group 128
    assert "--enable-expert-parallel" in plan.serve_args()
    refused = [c for c in plan.candidates if not c.feasible]
    assert "down_proj 768/4 = 192 is not a multiple of group 128" in refused[0].reason


def test_unknown_objective_and_limits(model_folder):
    folder = model_folder("llama-3.1-8b")
    with pytest.raises(UsageError, match="--objective beauty"):
        make_plan(PlanRequest(folder, gpu=("h100",), objective="beauty"))
    with pytest.raises(UsageError, match="--slo-tpot -1"):
        make_plan(PlanRequest(folder, gpu=("h100",), slo_tpot=-1.0))
