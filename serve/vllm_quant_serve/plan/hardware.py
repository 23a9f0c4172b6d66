"""Which devices a plan is for: named GPUs, this host's GPUs (NVML), or this host's CPU. No torch."""

from __future__ import annotations

import os
from dataclasses import dataclass

from vllm_quant_plugin.errors import UsageError
from vllm_quant_serve.plan.gpus import Gpu, find_gpu, parse_gpu, unknown_gpu
from vllm_quant_serve.plan.types import PlanRequest

# vLLM 0.32 and 0.33: CacheConfig.gpu_memory_utilization; on CPU it is the fraction of one NUMA node.
DEFAULT_UTILIZATION = 0.92


@dataclass(frozen=True)
class Devices:
    """The devices of a plan, all alike.

    Attributes:
        gpu: rates and memory of one device; for the CPU its memory is that of one NUMA node.
        count: how many there are (for the CPU: NUMA nodes).
        free: bytes free now on the fullest device, when it was looked at.
        is_cpu: the CPU backend.
        float32_states: a CPU on which vLLM keeps Mamba states in float32.
        kv_space: KV bytes fixed by ``VLLM_CPU_KVCACHE_SPACE``.
        note: where the figures come from, for people.
    """

    gpu: Gpu
    count: int
    free: int | None = None
    is_cpu: bool = False
    float32_states: bool = False
    kv_space: int | None = None
    note: str = ""

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


def local_gpus() -> Devices | None:
    """The GPUs of this host by NVML, or None where there is no driver.

    NVML's ``total - reserved`` is what CUDA reports as the total.
    """
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no driver, or no pynvml: NVML raises its own unrelated classes
        return None
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        if not handles:
            return None
        infos = []
        for handle in handles:
            info = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
            infos.append((int(info.total - info.reserved), int(info.free)))
        name = pynvml.nvmlDeviceGetName(handles[0])
    finally:
        pynvml.nvmlShutdown()
    name = name.decode() if isinstance(name, bytes) else str(name)
    memory = min(total for total, _ in infos)
    known = identify(name, memory)
    gpu = Gpu(name, memory, known.bandwidth, known.flops, known.link, known.link_name, known.capability, len(handles))
    return Devices(gpu, len(handles), min(free for _, free in infos), note="this host, by NVML")


def identify(driver_name: str, memory: int) -> Gpu:
    """The table's entry for a name as the driver spells it, e.g. ``NVIDIA H100 80GB HBM3``."""
    words = driver_name.lower().replace("nvidia", "").replace("geforce", "").replace("-", " ").split()
    text = "".join(words)
    best = None
    for key in ("gb200", "gh200", "b300", "b200", "h200", "h100", "h20", "l40s", "l40", "l20", "l4", "a100", "a800",
                "a40", "a30", "a10g", "a10", "t4", "v100", "mi300x", "mi325x", "mi355x"):  # fmt: skip
        if any(word == key or word.startswith(f"{key}sxm") for word in words):
            best = key
            break
    if best is None:
        for key in ("rtxpro6000", "rtx5090", "rtx5080", "rtx6000ada", "rtx4090", "rtx4080", "rtxa6000", "rtx3090",
                    "rtx3080", "rtx3060"):  # fmt: skip
            if text.startswith(key):
                best = key
                break
    if best is None:
        return unknown_gpu(memory)
    suffixes: list[str] = [s for s in ("pcie", "nvl") if s in words and f"{best}-{s}" in _variants()]
    if best in ("a100", "v100") and memory < 45 << 30:
        suffixes = ["40"] if best == "a100" else (["16"] if memory < 20 << 30 else [])
    return find_gpu(f"{best}-{suffixes[0]}" if suffixes else best)


def _variants() -> set[str]:
    return {"h100-pcie", "h100-nvl", "h200-nvl", "a100-pcie"}


def resolve_devices(request: PlanRequest) -> Devices:
    """The devices that ``request`` speaks of.

    Raises:
        UsageError: contradicting flags, an unknown GPU, no device flag on a host without GPUs.
    """
    if request.cpu or request.cpu_memory is not None:
        if request.gpu or request.gpu_memory is not None:
            raise UsageError("--cpu and --gpu exclude each other", "give one of them")
        return cpu_devices(request)
    if request.gpu:
        if len(request.gpu) > 1:
            raise UsageError("tensor parallelism needs GPUs of one kind", "plan for each kind on its own: one --gpu")
        gpu, count = parse_gpu(request.gpu[0])
        if request.gpu_memory is not None:
            gpu = Gpu(gpu.name, request.gpu_memory, gpu.bandwidth, gpu.flops, gpu.link, gpu.link_name, gpu.capability,
                      gpu.per_host)  # fmt: skip
        return Devices(gpu, count, note="table of known GPUs")
    if request.gpu_memory is not None:
        return Devices(unknown_gpu(request.gpu_memory), request.gpu_count, note="memory as given")
    found = local_gpus()
    if found is None:
        raise UsageError(
            "this host has no NVIDIA GPU (NVML finds none)",
            "say what to plan for: --gpu h100:4, --gpu-memory 48GiB or --cpu",
        )
    return found
