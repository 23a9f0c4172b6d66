"""Where a model will run. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

DeviceType = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Host:
    """Where the model will run.

    Attributes:
        device: ``cpu`` or ``cuda``.
        cpu_flags: x86 feature names as in /proc/cpuinfo; only for ``cpu``.
    """

    device: DeviceType
    cpu_flags: frozenset[str] = frozenset()

    @staticmethod
    def local(device: DeviceType) -> Host:
        """This machine, taken as ``device``."""
        return Host(device, _cpu_flags() if device == "cpu" else frozenset())

    @property
    def lacks_vnni(self) -> bool:
        """Whether this is a CPU without VNNI, where oneDNN's sums of INT8 products saturate at 16 bits."""
        return self.device == "cpu" and not self.cpu_flags & {"avx512_vnni", "avx_vnni"}

    @property
    def has_amx(self) -> bool:
        """Whether this is a CPU with AMX, which vLLM's kernels for blocks of FP8 need."""
        return self.device == "cpu" and "amx_tile" in self.cpu_flags

    @property
    def lacks_avx512(self) -> bool:
        """Whether this is a CPU without AVX-512, which vLLM's own weight-only kernels need."""
        return self.device == "cpu" and "avx512f" not in self.cpu_flags


def _cpu_flags() -> frozenset[str]:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return frozenset(line.partition(":")[2].split())
    except OSError:
        pass
    return frozenset()
