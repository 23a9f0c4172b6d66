"""The PTX of three kernels, executed: against fp64, against the emulator bit for bit where sums are exact, and with
planted errors. ``make ptx-run`` does the same with every kernel and every planted error. Needs nvcc, not a GPU."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch

from tests.cuda import emulated
from tests.cuda.ptx import cases, planted
from tests.cuda.ptx.launches import Device, Tensors
from tests.cuda.ptx.machine import Launch
from tests.kernels.weights import random_weight
from vllm_quant_kernels.cuda.pack import pack_cuda

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed: nothing to compile with")

KERNELS = [planted.DECODE, planted.PREFILL, planted.WIDE]
CASES = cases.cases()
# One of each kind; those that the machine alone can refuse are in test_ptx_model.py.
SEEN = [
    ("B of mma swapped", planted.DECODE), ("a wait for one group too few", planted.DECODE),
    ("no barrier", planted.DECODE), ("no wait at the cluster barrier", planted.DECODE),
    ("A overwritten in flight", planted.PREFILL), ("no proxy fence", planted.PREFILL),
    ("a multicast to one CTA", planted.WIDE), ("16 bytes too few expected", planted.WIDE),
    ("the other phase of the empty barrier", planted.WIDE), ("registers are not given back", planted.WIDE),
]  # fmt: skip


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_are_right_in_any_order(kernel: str) -> None:
    """With copies early or late, threads that converge as soon as they can or as late as they may."""
    results = [CASES[kernel](Device(seed=seed)) for seed in (0, 1)]
    assert torch.equal(results[0], results[1])


def test_exact_sums_are_those_of_the_emulator() -> None:
    """Integers and scales that are powers of two: nothing rounds but the output."""
    w = random_weight(100, 640, 4, 128, "integer", seed=1)
    w = replace(w, scales=2.0 ** torch.randint(-6, -2, w.scales.shape, generator=torch.Generator().manual_seed(1)))
    packed = pack_cuda(w)
    x = torch.randint(-4, 5, (100, 640), generator=torch.Generator().manual_seed(2)).half()
    exact = (x.double() @ w.dequantize(torch.float64).T).half()
    for tokens, rows, device, splits in ((8, 5, cases.SMALL, 2), (128, 100, cases.HOPPER, 1)):
        y = emulated.linear(x[:rows], packed, None, device, tokens, splits)
        with Device(seed=2).instead():
            assert torch.equal(emulated.linear(x[:rows], packed, None, device, tokens, splits), y)
        assert torch.equal(y, exact[:rows])


@pytest.mark.parametrize(("name", "kernel"), SEEN)
def test_planted_errors_are_seen(name: str, kernel: str) -> None:
    (error,) = (p for p in planted.PLANTED if (p.name, p.kernel) == (name, kernel))
    assert planted.is_seen(error, CASES[kernel])


class Relaunched(Device):
    """Launches with an attribute changed."""

    changes: dict[str, object]

    def execute(self, kernel: str, launch: Launch, tensors: Tensors, constants: tuple[int | None, ...] = ()) -> None:
        super().execute(kernel, replace(launch, **self.changes), tensors, constants)  # type: ignore[arg-type]


@pytest.mark.parametrize("changes", [{"cluster": 1}, {"shared_bytes": 40000}, {"threads": 128}], ids=str)
def test_wrong_launches_are_seen(changes: dict[str, object]) -> None:
    device = Relaunched()
    device.changes = changes
    with pytest.raises(AssertionError):
        CASES[planted.DECODE](device)
