"""Every row of the support table on an NVIDIA GPU: a named kernel of vLLM, and no more than the packed bytes."""

from __future__ import annotations

import pytest

from tests.support.matrix import CELLS, Cell, _shapes
from vllm_quant_kernels.kernel import Device
from vllm_quant_kernels.registry import choose

CAPABILITIES = [(8, 0), (8, 9), (9, 0), (10, 0)]
SIZE = 4096


@pytest.mark.parametrize("cell", [cell for cell in CELLS if not cell.refused], ids=lambda cell: cell.name)
def test_a_named_kernel_and_packed_bytes(cell: Cell) -> None:
    found = {cell.recipe.scheme_of(name) for name in _shapes(cell.architecture)} - {None}
    assert found
    for stored in found:
        assert stored is not None
        scheme = stored.weight
        for capability in CAPABILITIES:
            device = Device("cuda", capability)
            kernel = choose(scheme, SIZE, SIZE, device).kernel
            assert kernel.label_on(scheme, SIZE, SIZE, device).startswith("vLLM "), scheme.describe()
        # Codes, a 16-bit scale and a byte of zero point for each piece of a group that a kernel reads (three of 96, two
        # of 256), and 4 bytes per input feature for act-order and per channel beside.
        groups = scheme.groups(SIZE) * (1 if scheme.block or scheme.group_size <= 128 else 2)
        most = SIZE * SIZE * scheme.bits // 8 + 3 * SIZE * groups + 8 * SIZE
        assert kernel.packed_bytes(scheme, SIZE, SIZE) <= most
