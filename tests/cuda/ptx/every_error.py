"""Every planted error is seen, and the kernels without one are right. ``make ptx-run`` runs this file."""

from __future__ import annotations

import pytest

from tests.cuda.ptx import cases, planted
from tests.cuda.ptx.launches import Device

CASES = cases.cases()


@pytest.mark.parametrize("kernel", CASES)
@pytest.mark.parametrize("seed", range(6))
def test_kernels_are_right(kernel: str, seed: int) -> None:
    CASES[kernel](Device(seed=seed))


@pytest.mark.parametrize("error", planted.PLANTED, ids=lambda error: f"{error.kernel}: {error.name}")
def test_every_planted_error_is_seen(error: planted.Planted) -> None:
    assert planted.is_seen(error, CASES[error.kernel])
