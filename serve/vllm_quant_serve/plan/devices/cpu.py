"""This host's CPU as a device: memory per NUMA node, instruction sets. No torch."""

from __future__ import annotations

import os

from vllm_quant_plugin.errors import UsageError
from vllm_quant_serve.plan.devices.gpus import Gpu
from vllm_quant_serve.plan.devices.pool import Devices


def _cpu_memory() -> tuple[int, int]:
    """Total and available bytes of this host, at most the control group's limit."""
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


def cpu_devices(memory: int | None) -> Devices:
    """The CPU backend on this host, or on a host of ``memory`` bytes.

    VLLM_CPU_KVCACHE_SPACE (GiB) fixes the KV cache as it does in vLLM.

    Raises:
        UsageError: VLLM_CPU_KVCACHE_SPACE is not a whole number.
    """
    space = os.environ.get("VLLM_CPU_KVCACHE_SPACE", "")
    if space and not (space.isascii() and space.isdigit()):
        raise UsageError(f"VLLM_CPU_KVCACHE_SPACE={space!r} is not a whole number of GiB", "unset it or write e.g. 8")
    if memory is not None:
        total, free, nodes, note = memory, None, 1, "memory as given"
    else:
        nodes = _numa_nodes()
        total, available = _cpu_memory()
        total, free = total // nodes, available // nodes
        note = f"this host, {nodes} NUMA node{'s' * (nodes > 1)}"
    # Rates of a server socket (8 channels DDR5-4800, AMX BF16): they only rank placements of one host.
    cpu = Gpu("CPU", total, 200e9, {"bf16": 20e12, "int8": 40e12}, 50e9, "socket link", (0, 0), per_host=max(nodes, 1))
    return Devices(cpu, nodes, free, True, "avx512_bf16" in cpu_flags(), int(space or 0) << 30 or None, note)
