"""From the chosen placement to the plan: flags, environment variables, figures, notes. No torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from vllm_quant_serve.plan.devices.pool import DEFAULT_UTILIZATION, Devices
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
        env={**visible_devices(devices), **_variables(context), **best.env}, stage_layers=place.layers, nnodes=hosts,
        devices_per_node=min(place.devices, devices.gpu.per_host) if hosts > 1 else place.devices,
        expert_parallel=place.expert_parallel, compute_dtype=compute_dtype(devices.gpu, context.weights),
        dtype=context.dtype,
        prediction=_prediction(context, best),
        candidates=tuple(one.candidate(rated=not devices.is_cpu) for one in evaluated),
        notes=tuple(dict.fromkeys(notes)),
    )  # fmt: skip


def _flags(context: Context, best: Evaluated, fit: Fit) -> dict[str, str]:
    """Flags of ``vllm serve`` under which it runs this plan: all that vLLM's defaults do not give."""
    request, devices, place = context.request, context.devices, best.place
    on_gpus = not devices.is_cpu
    default_length, default_sequences = context.arch.max_position, context.default_max_num_seqs
    overrides = {"quantization_config": request.quantization_config} if request.quantization_config else None
    wanted: dict[str, object] = {
        "--revision": request.revision,
        "--quantization": request.quantization or context.needed_flags.get("--quantization"),
        "--hf-overrides": json.dumps(overrides) if overrides else None,
        "--dtype": context.dtype if context.named_dtype else None,
        "--tensor-parallel-size": place.tp if place.tp > 1 else None,
        "--pipeline-parallel-size": place.pp if place.pp > 1 else None,
        "--data-parallel-size": place.dp if place.dp > 1 else None,
        "--enable-expert-parallel": place.expert_parallel,
        "--distributed-executor-backend": "ray" if on_gpus and place.tp * place.pp > devices.gpu.per_host else None,
        "--data-parallel-backend":
            "ray" if on_gpus and place.dp > 1 and place.devices > devices.gpu.per_host else None,
        "--max-model-len": fit.length if request.max_model_len or fit.length != default_length else None,
        "--max-num-seqs": fit.max_num_seqs if request.max_num_seqs or fit.max_num_seqs != default_sequences else None,
        "--max-num-batched-tokens": request.max_num_batched_tokens,
        "--gpu-memory-utilization": f"{fit.utilization:g}" if fit.utilization != DEFAULT_UTILIZATION else None,
        "--kv-cache-dtype": context.kv.dtype if context.kv.dtype != "auto" else None,
        "--kv-cache-memory-bytes": request.kv_cache_memory or (fit.pinned if devices.kv_space is None else None),
        "--block-size": context.kv.block_size if request.block_size else None,
        "--enforce-eager": request.enforce_eager,
    }  # fmt: skip
    return {flag: "" if value is True else str(value) for flag, value in wanted.items() if value not in (None, False)}


def _variables(context: Context) -> dict[str, str]:
    """What the plan took from this process's environment: the launch needs it as well."""
    space = context.devices.kv_space
    return {"VLLM_CPU_KVCACHE_SPACE": str(space >> 30)} if space and context.request.kv_cache_memory is None else {}


def visible_devices(devices: Devices) -> dict[str, str]:
    """Variables that restrict vLLM to these GPUs, where the host has others."""
    if not devices.indices:
        return {}
    listed = ",".join(map(str, devices.indices))
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": listed}


def _prediction(context: Context, best: Evaluated) -> Prediction | None:
    speed, load, price = best.speed, workload(context), context.request.price
    if speed is None or context.devices.is_cpu:
        return None  # the rates of a CPU are not measured: they only rank placements
    return Prediction(
        load.prompt, load.output, speed.ttft, speed.tpot, speed.tokens_per_second, speed.tokens_per_second_per_device,
        speed.batch, speed.cost_per_million(price) if price is not None else None,
    )  # fmt: skip
