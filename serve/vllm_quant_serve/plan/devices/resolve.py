"""Which devices a plan is for: named GPUs, this host's GPUs (NVML), or this host's CPU. No torch."""

from __future__ import annotations

from dataclasses import replace

from vllm_quant_plugin.errors import UsageError
from vllm_quant_serve.plan.devices.cpu import cpu_devices
from vllm_quant_serve.plan.devices.gpus import MOST_DEVICES, MOST_KINDS, parse_gpu, unknown_gpu
from vllm_quant_serve.plan.devices.pool import Devices
from vllm_quant_serve.plan.request import PlanRequest


def resolve_pools(request: PlanRequest) -> tuple[Devices, ...]:
    """The devices of a request, one pool per kind.

    Raises:
        UsageError: contradictory flags, an unknown GPU, or too many devices.
    """
    if request.cpu or request.cpu_memory is not None:
        if request.gpu or request.gpu_memory is not None:
            raise UsageError("--cpu and --gpu exclude each other", "give one of them")
        if request.nodes is not None:
            raise UsageError("--nodes is for GPUs", "vLLM's CPU backend runs on one host")
        return (cpu_devices(request.cpu_memory),)
    if request.gpu:
        pools = _named(request)
    elif request.gpu_memory is not None:
        pools = (Devices(unknown_gpu(request.gpu_memory), request.gpu_count, note="memory as given"),)
    else:
        from vllm_quant_serve.plan.devices.nvml import local_pools

        pools = local_pools()
    if not pools and request.nodes is not None:
        raise UsageError("--nodes is for GPUs, and this host has none (NVML reports none)", "name them: --gpu h100:8")
    if not pools:
        return (cpu_devices(None),)
    total = sum(pool.count for pool in pools) * (request.nodes or 1)
    if total > MOST_DEVICES:
        raise UsageError(f"{total:,} devices are more than a plan considers", f"give at most {MOST_DEVICES:,}")
    if request.nodes is None:
        return pools
    if len(pools) > 1:
        raise UsageError("--nodes is for GPUs of one kind", "give the total numbers, e.g. --gpu h100:8,a100:8")
    one = pools[0]
    return (replace(one, gpu=replace(one.gpu, per_host=one.count), count=one.count * request.nodes),)


def _named(request: PlanRequest) -> tuple[Devices, ...]:
    """The pools of ``--gpu``; counts of a kind that is named twice are added."""
    found: dict[str, Devices] = {}
    specs = [part for given in request.gpu[: MOST_KINDS + 1] for part in given[:1000].split(",")]
    if len(specs) > MOST_KINDS:
        raise UsageError(f"--gpu names more than {MOST_KINDS} kinds of GPU", "plan for fewer of them at once")
    for spec in specs:
        gpu, count = parse_gpu(spec.strip())
        if request.gpu_memory is not None:
            gpu = replace(gpu, memory=request.gpu_memory)
        count += found[gpu.name].count if gpu.name in found else 0
        found[gpu.name] = Devices(gpu, count, note="table of known GPUs")
    if request.gpu_memory is not None and len(found) > 1:
        raise UsageError("--gpu-memory is for GPUs of one kind", "leave it out, or name one kind")
    return tuple(found.values())


def resolve_devices(request: PlanRequest) -> Devices:
    """The first pool of a request.

    Raises:
        UsageError: as ``resolve_pools``.
    """
    return resolve_pools(request)[0]
