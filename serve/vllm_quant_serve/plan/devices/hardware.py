"""Which devices a plan is for: named GPUs, this host's GPUs (NVML), or this host's CPU. No torch."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from vllm_quant_plugin.errors import UsageError
from vllm_quant_serve.plan.devices.gpus import Gpu, parse_gpu, unknown_gpu
from vllm_quant_serve.plan.types import PlanRequest

# vLLM 0.32 and 0.33: CacheConfig.gpu_memory_utilization; on CPU it is the fraction of one NUMA node.
DEFAULT_UTILIZATION = 0.92


@dataclass(frozen=True)
class Devices:
    """Devices that are all alike.

    Attributes:
        gpu: rates and memory of one device; for the CPU its memory is that of one NUMA node.
        count: how many there are (for the CPU: NUMA nodes).
        free: bytes free now on the fullest device, when it was looked at.
        is_cpu: the CPU backend.
        float32_states: a CPU on which vLLM keeps Mamba states in float32.
        kv_space: KV bytes fixed by ``VLLM_CPU_KVCACHE_SPACE``.
        note: where the figures come from, for people.
        indices: of this host's GPUs, where they are not all that there are.
    """

    gpu: Gpu
    count: int
    free: int | None = None
    is_cpu: bool = False
    float32_states: bool = False
    kv_space: int | None = None
    note: str = ""
    indices: tuple[int, ...] = ()

    @property
    def hosts(self) -> int:
        return -(-self.count // self.gpu.per_host)


def _cpu_memory() -> tuple[int, int]:
    """Total and available bytes of this host, not above the control group's limit."""
    import psutil

    found = psutil.virtual_memory()
    total, available = int(found.total), int(found.available)
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(path) as file:
                limit = file.read().strip()
        except OSError:
            continue
        if limit.isdigit() and int(limit) < total:
            total, available = int(limit), min(available, int(limit))
    return total, available


def cpu_flags() -> set[str]:
    """Instruction sets of this host's CPU, as Linux names them."""
    try:
        with open("/proc/cpuinfo") as file:
            return next((set(line.split()) for line in file if line.startswith("flags")), set())
    except OSError:
        return set()


def _numa_nodes() -> int:
    try:
        return max(1, sum(n.startswith("node") and n[4:].isdigit() for n in os.listdir("/sys/devices/system/node")))
    except OSError:
        return 1


def cpu_devices(request: PlanRequest) -> Devices:
    """This host's memory, or ``--cpu-memory``; VLLM_CPU_KVCACHE_SPACE (GiB) fixes the KV cache as it does in vLLM."""
    space = os.environ.get("VLLM_CPU_KVCACHE_SPACE", "")
    if space and not (space.isascii() and space.isdigit()):
        raise UsageError(f"VLLM_CPU_KVCACHE_SPACE={space!r} is no whole number of GiB", "unset it or write e.g. 8")
    if request.cpu_memory is not None:
        total, free, nodes, note = request.cpu_memory, None, 1, "memory as given"
    else:
        nodes = _numa_nodes()
        total, available = _cpu_memory()
        total, free = total // nodes, available // nodes
        note = f"this host, {nodes} NUMA node{'s' * (nodes > 1)}"
    # Rates of a server socket (8 channels DDR5-4800, AMX BF16): they only rank placements of one host.
    cpu = Gpu("CPU", total, 200e9, {"bf16": 20e12, "int8": 40e12}, 50e9, "socket link", (0, 0), per_host=max(nodes, 1))
    return Devices(cpu, nodes, free, True, "avx512_bf16" in cpu_flags(), int(space or 0) << 30 or None, note)


def resolve_pools(request: PlanRequest) -> tuple[Devices, ...]:
    """The devices that ``request`` speaks of, one entry per kind.

    Raises:
        UsageError: contradicting flags, an unknown GPU, no device flag on a host without GPUs.
    """
    if request.cpu or request.cpu_memory is not None:
        if request.gpu or request.gpu_memory is not None:
            raise UsageError("--cpu and --gpu exclude each other", "give one of them")
        if request.nodes is not None:
            raise UsageError("--nodes is for GPUs", "vLLM's CPU backend runs on one host")
        return (cpu_devices(request),)
    if request.gpu:
        pools = _named(request)
    elif request.gpu_memory is not None:
        pools = (Devices(unknown_gpu(request.gpu_memory), request.gpu_count, note="memory as given"),)
    else:
        from vllm_quant_serve.plan.devices.nvml import local_pools

        pools = local_pools()
    if not pools:
        raise UsageError(
            "this host has no NVIDIA GPU (NVML finds none)",
            "say what to plan for: --gpu h100:4, --gpu-memory 48GiB or --cpu",
        )
    if request.nodes is None:
        return pools
    if len(pools) > 1:
        raise UsageError("--nodes is for GPUs of one kind", "give the total numbers, e.g. --gpu h100:8,a100:8")
    one = pools[0]
    return (replace(one, gpu=replace(one.gpu, per_host=one.count), count=one.count * request.nodes),)


def _named(request: PlanRequest) -> tuple[Devices, ...]:
    """``--gpu``: kinds that are named twice are added up."""
    found: dict[str, Devices] = {}
    for spec in (part for given in request.gpu for part in given.split(",")):
        gpu, count = parse_gpu(spec.strip())
        if request.gpu_memory is not None:
            gpu = replace(gpu, memory=request.gpu_memory)
        count += found[gpu.name].count if gpu.name in found else 0
        found[gpu.name] = Devices(gpu, count, note="table of known GPUs")
    if request.gpu_memory is not None and len(found) > 1:
        raise UsageError("--gpu-memory is for GPUs of one kind", "leave it out, or name one kind")
    return tuple(found.values())


def resolve_devices(request: PlanRequest) -> Devices:
    """The devices that ``request`` speaks of; of several kinds the first.

    Raises:
        UsageError: as ``resolve_pools``.
    """
    return resolve_pools(request)[0]
