"""From the chosen placement to the plan: flags, environment variables, figures, notes. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vllm_quant_serve.plan.devices.pool import Devices
from vllm_quant_serve.plan.search.context import Context
from vllm_quant_serve.plan.search.fit import Fit
from vllm_quant_serve.plan.search.placements import Evaluated, workload
from vllm_quant_serve.plan.search.roofline import compute_dtype
from vllm_quant_serve.plan.types import Plan, Prediction


def to_plan(context: Context, best: Evaluated, evaluated: Sequence[Evaluated]) -> Plan:
    """The plan of a placement that was evaluated under ``context``; ``evaluated`` are all candidates."""
    request, devices, fit, place = context.request, context.devices, best.fit, best.place
    assert fit is not None
    flags = {**_flags(context, best, fit), **best.flags}
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
        expert_parallel=place.expert_parallel, compute_dtype=compute_dtype(devices.gpu, context.scheme),
        prediction=_prediction(context, best),
        candidates=tuple(one.candidate() for one in evaluated), notes=tuple(dict.fromkeys(notes)),
    )  # fmt: skip


def _flags(context: Context, best: Evaluated, fit: Fit) -> dict[str, str]:
    """Flags of ``vllm serve`` for what the user left open and vLLM's defaults do not give."""
    request, devices, place = context.request, context.devices, best.place
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
    return flags


def visible_devices(devices: Devices) -> dict[str, str]:
    """Variables that restrict vLLM to these GPUs, where the host has others."""
    if not devices.indices:
        return {}
    listed = ",".join(map(str, devices.indices))
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": listed}


def _prediction(context: Context, best: Evaluated) -> Prediction | None:
    speed, load, price = best.speed, workload(context), context.request.price
    if speed is None:
        return None
    return Prediction(
        load.prompt, load.output, speed.ttft, speed.tpot, speed.tokens_per_second, speed.tokens_per_second_per_device,
        speed.batch, speed.cost_per_million(price) if price is not None else None,
    )  # fmt: skip
