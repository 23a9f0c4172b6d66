"""A pytest plugin that runs the emulator's tests on the interpreter: ``pytest -p tests.cuda.ptx.plugin tests/cuda/...``

Each test has its own seed, and launches that any target can run are those of sm_80 (FP8 W8A8: sm_89) every other time.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from unittest import mock

import pytest

from tests.cuda import emulated, emulated_w8a8
from tests.cuda.ptx.launches import Device, Tensors
from tests.cuda.ptx.machine import SHARED_LIMIT, Launch


class AnyTarget(Device):
    """Takes turns between the targets that a launch is possible on."""

    def execute(self, kernel: str, launch: Launch, tensors: Tensors, constants: tuple[int | None, ...] = ()) -> None:
        older = "sm_89" if kernel.startswith(("w8a8<9", "w8a8_reduce<9")) else "sm_80"
        wide = launch.cluster > 1 or launch.dependent or "wide" in kernel or launch.shared_bytes > SHARED_LIMIT[older]
        self.target = "sm_90a" if wide or self.seed % 4 < 2 else older
        super().execute(kernel, launch, tensors, constants)
        self.seed += 1


@pytest.fixture(autouse=True)
def _interpreted(request: pytest.FixtureRequest) -> Iterator[None]:
    device = AnyTarget(seed=zlib.crc32(request.node.nodeid.encode()) % 1000)
    with (
        device.instead(),
        mock.patch.object(emulated, "pack", device.pack),
        mock.patch.object(emulated_w8a8, "quantize", device.quantize),
    ):
        yield
