"""From a request to a plan: the placement that the objective prefers. No torch."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import get_args

from vllm_quant_plugin.checkpoint import Checkpoint
from vllm_quant_plugin.errors import UsageError
from vllm_quant_serve.plan.devices.hardware import Devices, resolve_pools
from vllm_quant_serve.plan.search.context import Context, load_context
from vllm_quant_serve.plan.search.fallbacks import Easing, easings
from vllm_quant_serve.plan.search.placements import MIN_USEFUL_LENGTH, Looked, look, look_around, round_length, workload
from vllm_quant_serve.plan.search.refuse import refuse
from vllm_quant_serve.plan.types import Objective, Plan, PlanRequest, Prediction

COUNTS = (
    "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "max_model_len", "concurrency",
    "max_num_seqs", "max_num_batched_tokens", "block_size", "kv_cache_memory", "gpu_count", "nodes", "prompt_tokens",
    "output_tokens",
)  # fmt: skip


def best_of(context: Context, looked: list[Looked]) -> Looked | None:
    """The placement that the objective prefers; ties go to the first, which takes fewer devices.

    Where all fit only by a margin smaller than the estimates' error, the one with the largest margin is taken:
    it is also the first that fits with certainty as memory grows, so that more memory never takes more devices.
    """
    found = [one for one in looked if one.feasible and one.speed is not None]
    if not found:
        return None
    sure = [one for one in found if one.sure]
    found = sure or [max(found, key=lambda one: one.fit.slack if one.fit is not None else 0)]
    objective = context.request.objective

    def rank(one: Looked) -> tuple[float, ...]:
        assert one.speed is not None
        if objective == "latency":
            return (one.speed.tpot, one.speed.ttft)
        if objective == "throughput":
            return (-one.speed.tokens_per_second,)
        return (-one.speed.tokens_per_second_per_device,)

    return found[0] if objective == "fewest-gpus" else min(found, key=rank)


def choose_plan(request: PlanRequest, checkpoint: Checkpoint | None = None) -> Plan:
    """See ``api.make_plan``."""
    return explained_plan(request, checkpoint)[1]


def explained_plan(request: PlanRequest, checkpoint: Checkpoint | None = None) -> tuple[Context, Plan]:
    """The plan, and under what it was made."""
    check_request(request)
    pools = resolve_pools(request)
    if len(pools) > 1:
        from vllm_quant_serve.plan.search.heterogeneous import plan_pools

        return plan_pools(request, pools, checkpoint)
    context = load_context(request, checkpoint, pools[0])
    best, looked = search(context)
    if best is None:
        refuse(context, looked)
    return best.context or context, to_plan(context, best, looked)


def plan_context(context: Context) -> Plan:
    """The best plan of a model that was read already.

    Raises:
        NoFeasiblePlanError: nothing fits.
    """
    best, looked = search(context)
    if best is None:
        refuse(context, looked)
    return to_plan(context, best, looked)


def search(context: Context) -> tuple[Looked | None, list[Looked]]:
    """The best placement and all that were looked at.

    Where nothing fits as vLLM would run it, harmless settings are changed first (``easing``); without a length
    from the user the context is shortened before the cache loses precision.
    """
    looked = look_around(context)
    best = best_of(context, looked)
    if best is not None:
        return best, looked
    open_length = context.request.max_model_len is None
    steps = list(easings(context))
    for step in steps[:1] if open_length else steps:
        eased = [
            replace(one, flags=step.flags, context=step.context, notes=step.notes) for one in look_around(step.context)
        ]
        best = best_of(context, eased)
        if best is not None:
            return best, [*looked, *(one for one in eased if one.feasible)]
    if open_length:
        shortened: list[Looked] = []
        for i, step in enumerate((Easing({}, context), *steps)):
            best = _shorten(step, looked if step.context is context else look_around(step.context))
            shortened += [best] if best is not None else []
            # Fewer sequences cost little: they are tried before a placement that fits by the estimates only.
            if shortened and (shortened[-1].sure or i >= 1):
                break
        if shortened:
            best = shortened[-1] if shortened[-1].sure else shortened[0]
            return best, [*looked, best]
    return None, looked


def _shorten(step: Easing, looked: list[Looked]) -> Looked | None:
    """Without a length from the user: the placement that holds the longest context, if that is of use.

    A length that fits at the pessimistic end of the estimates is taken where there is one.
    """
    context = step.context
    useful = min(MIN_USEFUL_LENGTH, context.length)
    fits = [one for one in looked if one.fit is not None and one.meets and one.fit.longest >= useful]
    for one in sorted(fits, key=lambda one: (-(one.fit.longest if one.fit else 0), one.place.devices)):
        assert one.fit is not None
        length = round_length(one.fit.surely if one.fit.surely >= useful else one.fit.longest)
        shorter = look(replace(context, length=length, shortened=True), one.place)
        if shorter.feasible:
            flags = {**step.flags, "--max-model-len": str(length)}
            return replace(shorter, flags=flags, context=step.context, notes=step.notes)
    return None


def check_request(request: PlanRequest) -> None:
    """UsageError for values that no device can make sense of."""
    for name in COUNTS:
        value = getattr(request, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} {value} must be at least 1", "give a positive number")
    if request.gpu_memory_utilization is not None and not 0 < request.gpu_memory_utilization <= 1:
        raise UsageError(f"--gpu-memory-utilization {request.gpu_memory_utilization} is out of range", "0 < x <= 1")
    limits = {"--slo-ttft": request.slo_ttft, "--slo-tpot": request.slo_tpot, "--price": request.price}
    for flag, limit in limits.items():
        if limit is not None and not 0 < limit < math.inf:
            raise UsageError(
                f"{flag} {limit} must be positive", "give seconds, or currency per device-hour for --price"
            )
    if request.objective not in get_args(Objective):
        raise UsageError(
            f"--objective {request.objective} is unknown", f"it is one of {', '.join(get_args(Objective))}"
        )


def to_plan(context: Context, best: Looked, looked: list[Looked]) -> Plan:
    """The plan of a placement; ``best.context`` is under what it was looked at, ``context`` the request's."""
    context = best.context or context
    request, devices, fit, place = context.request, context.devices, best.fit, best.place
    assert fit is not None
    flags: dict[str, str] = {}
    if request.tensor_parallel_size is None and place.tp > 1:
        flags["--tensor-parallel-size"] = str(place.tp)
    if request.pipeline_parallel_size is None and place.pp > 1:
        flags["--pipeline-parallel-size"] = str(place.pp)
    if request.data_parallel_size is None and place.dp > 1:
        flags["--data-parallel-size"] = str(place.dp)
    if request.enable_expert_parallel is None and place.expert_parallel:
        flags["--enable-expert-parallel"] = ""
    if place.tp * place.pp > devices.gpu.per_host and not devices.is_cpu:
        flags["--distributed-executor-backend"] = "ray"
    if place.dp > 1 and place.devices > devices.gpu.per_host and not devices.is_cpu:
        flags["--data-parallel-backend"] = "ray"
    if request.max_model_len is None and fit.length != context.arch.max_position:
        flags["--max-model-len"] = str(fit.length)
    if request.max_num_seqs is None and fit.max_num_seqs != context.default_max_num_seqs:
        flags["--max-num-seqs"] = str(fit.max_num_seqs)
    if request.gpu_memory_utilization is None and fit.utilization != context.default_utilization:
        flags["--gpu-memory-utilization"] = f"{fit.utilization:g}"
    if fit.pinned is not None and request.kv_cache_memory is None and devices.kv_space is None:
        flags["--kv-cache-memory-bytes"] = str(fit.pinned)
    flags.update(best.flags)
    if request.kv_cache_memory is not None:
        fit = replace(fit, pinned=request.kv_cache_memory)
    notes = [*context.notes, *fit.notes, *best.notes]
    hosts = 1 if devices.is_cpu else -(-place.devices // devices.gpu.per_host)
    if "ray" in flags.values():
        notes.append(f"spans {hosts} hosts: start Ray on each of them first (or use vLLM's --nnodes and --node-rank)")
    return Plan(
        model=request.model, architecture=context.arch.architecture or context.arch.model_type,
        quantization=context.quantization, device=best.device or devices.gpu.name, device_count=devices.count,
        memory_total=devices.gpu.memory, memory_budget=fit.budget, tensor_parallel_size=place.tp,
        pipeline_parallel_size=place.pp, data_parallel_size=place.dp, max_model_len=fit.length,
        max_num_seqs=fit.max_num_seqs, gpu_memory_utilization=fit.utilization, kv_cache_dtype=fit.layout.settings.dtype,
        block_size=context.kv.block_size, weight_bytes_per_rank=fit.weight_bytes, overhead_bytes=fit.overhead,
        kv_bytes=fit.kv_bytes, kv_bytes_per_token=fit.layout.token_bytes, kv_tokens=fit.kv_tokens,
        kv_blocks=fit.blocks, max_concurrency=round(fit.layout.concurrency(fit.blocks, fit.length), 2),
        kv_cache_memory=fit.pinned, flags=flags,
        overhead_parts={name: part.value for name, part in fit.overhead_parts.items()},
        env={**visible_devices(devices), **best.env}, stage_layers=place.layers, nnodes=hosts,
        devices_per_node=min(place.devices, devices.gpu.per_host) if hosts > 1 else place.devices,
        expert_parallel=place.expert_parallel, prediction=_prediction(context, best),
        candidates=tuple(one.candidate() for one in looked), notes=tuple(dict.fromkeys(notes)),
    )  # fmt: skip


def visible_devices(devices: Devices) -> dict[str, str]:
    """What shows vLLM these GPUs only, where they are not all of the host's."""
    if not devices.indices:
        return {}
    listed = ",".join(map(str, devices.indices))
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": listed}


def _prediction(context: Context, best: Looked) -> Prediction | None:
    speed, load, price = best.speed, workload(context), context.request.price
    if speed is None:
        return None
    return Prediction(
        load.prompt, load.output, speed.ttft, speed.tpot, speed.tokens_per_second, speed.tokens_per_second_per_device,
        speed.batch, speed.cost_per_million(price) if price is not None else None,
    )  # fmt: skip
