"""The GPUs of this host, by NVML: kinds, memory, and what other processes hold of it. No torch."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from vllm_quant_kernels.cuda.verify.machine import text, visible
from vllm_quant_serve.plan.devices.gpus import Gpu, find_gpu, unknown_gpu
from vllm_quant_serve.plan.devices.pool import DEFAULT_UTILIZATION, Devices


@dataclass(frozen=True)
class LocalGpu:
    """One GPU: NVML's ``total - reserved`` is what CUDA reports as the total."""

    index: int
    uuid: str
    name: str
    total: int
    free: int

    @property
    def busy(self) -> bool:
        """Whether other processes hold more than vLLM leaves to them by default."""
        return self.free < self.total * DEFAULT_UTILIZATION


def read_gpus() -> list[LocalGpu]:
    """Every GPU that CUDA_VISIBLE_DEVICES lists; none where there is no driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no driver, or no pynvml: NVML raises its own unrelated classes
        return []
    found = []
    try:
        for i in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(i)
            info = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
            name, uuid = pynvml.nvmlDeviceGetName(handle), pynvml.nvmlDeviceGetUUID(handle)
            found.append(LocalGpu(i, text(uuid), text(name), int(info.total - info.reserved), int(info.free)))
    finally:
        pynvml.nvmlShutdown()
    return visible(found, os.environ.get("CUDA_VISIBLE_DEVICES"))


def local_pools() -> tuple[Devices, ...]:
    """The GPUs of this host by kind; idle ones separate from those that other processes use, most memory first."""
    return pools_of(read_gpus())


def pools_of(gpus: list[LocalGpu]) -> tuple[Devices, ...]:
    """See ``local_pools``. Memory of a pool is the least of its members'."""
    kinds: dict[tuple[str, bool], list[LocalGpu]] = {}
    mixed = any(gpu.busy for gpu in gpus) and not all(gpu.busy for gpu in gpus)
    for gpu in gpus:
        kinds.setdefault((gpu.name, gpu.busy and mixed), []).append(gpu)
    found = []
    for (name, _), members in kinds.items():
        memory, free = min(g.total for g in members), min(g.free for g in members)
        kind = replace(identify(name, memory), name=name, memory=memory, per_host=len(members))
        indices = tuple(g.index for g in members) if len(kinds) > 1 else ()
        found.append(Devices(kind, len(members), free, note="this host, by NVML", indices=indices))
    return tuple(sorted(found, key=lambda pool: -(pool.free or 0) * pool.count))


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
