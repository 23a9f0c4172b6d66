"""Energy of the devices by NVML, where there is NVML and the device has an energy counter."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any


class EnergyMeter:
    """Joules since the meter was opened. Get one from ``open_meter``."""

    def __init__(self, nvml: Any, handles: Sequence[Any]) -> None:
        self._nvml, self._handles = nvml, list(handles)
        self._last = self._read()

    def _read(self) -> float:
        return sum(self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in self._handles) / 1000.0

    def since_last(self) -> float:
        """Joules since the last call."""
        now = self._read()
        spent, self._last = now - self._last, now
        return max(spent, 0.0)


def visible_devices(count: int, variable: str | None) -> list[int | str]:
    """NVML indices or UUIDs of the first ``count`` devices that CUDA_VISIBLE_DEVICES shows."""
    if not variable:
        return list(range(count))
    words = [word.strip() for word in variable.split(",") if word.strip()]
    return [int(word) if word.isdigit() else word for word in words[:count]]


def open_meter(count: int) -> EnergyMeter | None:
    """A meter over the ``count`` devices in use; None where NVML or its energy counter is absent."""
    try:
        import pynvml

        pynvml.nvmlInit()
        handles = [
            pynvml.nvmlDeviceGetHandleByIndex(device)
            if isinstance(device, int)
            else pynvml.nvmlDeviceGetHandleByUUID(device)
            for device in visible_devices(count, os.environ.get("CUDA_VISIBLE_DEVICES"))
        ]
        return EnergyMeter(pynvml, handles) if handles else None
    except Exception:  # no driver, no such device, not supported: NVML raises unrelated classes for each
        return None
