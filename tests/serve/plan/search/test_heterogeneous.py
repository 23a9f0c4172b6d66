"""Odd numbers of GPUs, GPUs of several kinds, several hosts, and GPUs that others use, too."""

import dataclasses

import pytest

from vllm_quant_plugin.architecture.placement import Placement
from vllm_quant_plugin.errors import NoFeasiblePlanError, UsageError
from vllm_quant_serve.plan.api import PlanRequest, make_plan
from vllm_quant_serve.plan.devices.gpus import GIB, find_gpu
from vllm_quant_serve.plan.devices.nvml import LocalGpu, identify, pools_of, visible
from vllm_quant_serve.plan.devices.pool import Devices
from vllm_quant_serve.plan.devices.resolve import resolve_pools
from vllm_quant_serve.plan.model.load import load_model
from vllm_quant_serve.plan.output.render import command_line, refused_lines
from vllm_quant_serve.plan.search.compare import compare
from vllm_quant_serve.plan.search.context import load_context
from vllm_quant_serve.plan.search.fit import fit_stage


@pytest.mark.parametrize("count", [3, 5, 6, 7])
@pytest.mark.parametrize("objective", ["fewest-gpus", "throughput", "latency"])
def test_odd_numbers_of_gpus_are_used_as_far_as_the_model_divides(model_folder, count, objective):
    request = PlanRequest(
        model_folder("llama-3.1-8b"), gpu=(f"rtx4090:{count}",), max_model_len=4096, objective=objective
    )
    plan = make_plan(request)
    used = plan.tensor_parallel_size * plan.pipeline_parallel_size * plan.data_parallel_size
    assert used <= count
    assert used == {"fewest-gpus": 1, "throughput": count, "latency": 4 if count >= 4 else 2}[objective]
    reasons = [c.reason for c in plan.candidates if not c.feasible]
    if objective == "latency":
        assert any("32 attention heads do not divide by 3" in reason for reason in reasons)


def test_one_kind_that_is_enough_is_taken_alone(model_folder):
    plan = make_plan(PlanRequest(model_folder("llama-3.1-8b"), gpu=("l4:2,h100:1",), max_model_len=8192))
    assert plan.device == "H100 SXM 80GB"  # as few as one L4, and faster
    assert plan.stage_layers == ()
    assert {c.device for c in plan.candidates} >= {"L4", "H100 SXM 80GB"}
    assert any("not used" in note for note in plan.notes)


def test_kinds_may_be_given_by_several_flags_and_are_added_up():
    pools = resolve_pools(PlanRequest("x", gpu=("h100:2", "a100:1,h100")))
    assert [(pool.gpu.name, pool.count) for pool in pools] == [("H100 SXM 80GB", 3), ("A100 SXM 80GB", 1)]


def test_a_pipeline_through_two_kinds_gives_layers_by_memory(model_folder):
    request = PlanRequest(model_folder("llama-3.3-70b"), gpu=("h100:1,rtx4090:4",), max_model_len=4096)
    plan = make_plan(request)
    assert plan.pipeline_parallel_size == 5
    assert sum(plan.stage_layers) == 80
    assert plan.stage_layers[0] > 3 * plan.stage_layers[1]
    assert plan.env["VLLM_PP_LAYER_PARTITION"] == ",".join(map(str, plan.stage_layers))
    assert plan.flags["--pipeline-parallel-size"] == "5"
    assert command_line(plan).startswith("VLLM_PP_LAYER_PARTITION=")
    place = Placement(1, 5, layers=plan.stage_layers)
    blocks = []
    for pool, stages in zip(resolve_pools(request), ((0,), (1, 2, 3, 4)), strict=True):
        settled = dataclasses.replace(request, max_num_seqs=256, max_num_batched_tokens=2048)
        context = load_context(settled, load_model(settled), pool)
        for stage in stages:
            fit = fit_stage(context, place, stage)
            assert fit.feasible
            assert fit.weight_bytes + fit.overhead.value + fit.kv_bytes.value <= fit.budget
            blocks.append(fit.blocks)
    assert plan.kv_blocks == min(blocks)  # vLLM takes the fewest of all ranks


def test_where_no_mixture_is_enough_the_reason_says_what_is_missing(model_folder):
    with pytest.raises(NoFeasiblePlanError, match=r"does not fit .*GiB of weights"):
        make_plan(PlanRequest(model_folder("llama-3.1-405b"), gpu=("l4:1,a10:2",), max_model_len=4096))


def test_methods_are_compared_on_one_kind(model_folder):
    with pytest.raises(UsageError, match="devices of one kind"):
        compare(PlanRequest(model_folder("llama-3.1-8b"), gpu=("l4:1,a10:2",)))


def test_nodes_multiply_the_gpus_and_bound_tensor_parallelism(model_folder):
    plan = make_plan(PlanRequest(model_folder("llama-3.1-405b"), gpu=("h100:4",), nodes=4, max_model_len=8192))
    assert plan.device_count == 16
    assert plan.tensor_parallel_size <= 4
    assert plan.pipeline_parallel_size >= 3
    assert plan.flags["--distributed-executor-backend"] == "ray"
    assert (plan.nnodes, plan.devices_per_node) == (-(-plan.tensor_parallel_size * plan.pipeline_parallel_size // 4), 4)
    crossing = [line for line in refused_lines(plan.candidates) if "would cross hosts of 4 GPUs" in line]
    assert len(crossing) == 1
    assert crossing[0].startswith("TP 5 to 16")


def test_replicas_on_several_hosts_are_started_by_ray(model_folder):
    plan = make_plan(
        PlanRequest(model_folder("llama-3.1-8b"), gpu=("h100:2",), nodes=2, objective="throughput", max_model_len=4096)
    )
    assert plan.data_parallel_size == 4
    assert (plan.nnodes, plan.devices_per_node) == (2, 2)
    assert plan.flags["--data-parallel-backend"] == "ray"


def local(index: int, name: str, total: float, free: float) -> LocalGpu:
    return LocalGpu(index, f"GPU-{index}abc", name, int(total * GIB), int(free * GIB))


H100 = "NVIDIA H100 80GB HBM3"


def test_gpus_that_others_use_are_left_out(model_folder, monkeypatch):
    gpus = [local(0, H100, 79.1, 20), *(local(i, H100, 79.1, 78.6) for i in (1, 2, 3))]
    idle, used = pools_of(gpus)
    assert (idle.count, idle.indices, used.indices) == (3, (1, 2, 3), (0,))
    monkeypatch.setattr("vllm_quant_serve.plan.api.resolve_pools", lambda _: (idle, used))
    plan = make_plan(PlanRequest(model_folder("llama-3.1-8b"), max_model_len=8192))
    assert plan.env == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "1,2,3"}
    assert plan.gpu_memory_utilization == 0.92


def test_alike_idle_gpus_are_one_kind_without_a_variable():
    (pool,) = pools_of([local(i, H100, 79.1, 78.6) for i in range(4)])
    assert (pool.count, pool.indices) == (4, ())
    (busy,) = pools_of([local(i, H100, 79.1, 30) for i in range(2)])
    assert busy.free == 30 * GIB


def test_two_kinds_in_one_host_are_two_pools():
    pools = pools_of([local(0, "NVIDIA GeForce RTX 4090", 23.5, 23), local(1, "NVIDIA GeForce RTX 3090", 23.6, 23)])
    assert [pool.indices for pool in pools] in ([(0,), (1,)], [(1,), (0,)])


def test_cuda_visible_devices_is_obeyed():
    gpus = [local(i, H100, 79.1, 78) for i in range(4)]
    assert [g.index for g in visible(gpus, None)] == [0, 1, 2, 3]
    assert [g.index for g in visible(gpus, "2,0")] == [2, 0]
    assert [g.index for g in visible(gpus, "GPU-3")] == [3]
    assert visible(gpus, "") == []
    assert [g.index for g in visible(gpus, "1,9,2")] == [1]  # CUDA stops at the first unknown one


def test_drivers_names_are_recognized():
    assert identify(H100, 79 * GIB).name == find_gpu("h100").name
    assert identify("NVIDIA A100-SXM4-40GB", 39 * GIB).name == find_gpu("a100-40").name
    assert identify("NVIDIA GeForce RTX 4090", 23 * GIB).name == find_gpu("rtx4090").name
    assert "GiB" in identify("Unheard of", 10 * GIB).name
    assert Devices(find_gpu("h100"), 16).hosts == 2
