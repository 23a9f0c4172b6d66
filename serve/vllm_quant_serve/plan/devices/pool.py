"""A pool of identical devices. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_quant_serve.plan.devices.gpus import Gpu

# vLLM 0.32 and 0.33: CacheConfig.gpu_memory_utilization; on CPU it is the fraction of one NUMA node.
DEFAULT_UTILIZATION = 0.92


@dataclass(frozen=True)
class Devices:
    """Identical devices.

    Attributes:
        gpu: rates and memory of one device; for the CPU its memory is that of one NUMA node.
        count: how many there are (for the CPU: NUMA nodes).
        free: bytes free now on the fullest device; None where the devices are not of this host.
        is_cpu: the CPU backend.
        float32_states: a CPU on which vLLM keeps Mamba states in float32.
        kv_space: KV bytes fixed by ``VLLM_CPU_KVCACHE_SPACE``.
        note: human-readable source of the figures.
        indices: NVML indices, where the pool is only a part of this host's GPUs.
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
