"""With VLLM_BATCH_INVARIANT=1 a row of the result does not depend on the batch it is in: bit for bit, 1 to 512 rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.kernels.weights import random_weight
from vllm_quant_kernels.cpu.ops import linear, linear_a8, linear_int8
from vllm_quant_kernels.cpu.pack import pack, pack_int8

M, K = 512, 288
SIZES = [*range(1, 40), *range(40, M, 23), M]


@pytest.fixture(autouse=True)
def invariant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "1")


def check(call: Any, x: torch.Tensor, sizes: list[int]) -> None:
    """Every prefix of ``x``, and some rows out of its middle, give the rows that the whole batch gives."""
    whole = call(x)
    for m in sizes:
        assert torch.equal(call(x[:m]), whole[:m]), m
    assert torch.equal(call(x[200:203]), whole[200:203])
    assert torch.equal(call(x[77]), whole[77])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("bits", "zeros"), [(4, "integer"), (3, "none"), (8, "floating")])
def test_weight_only(bits: int, zeros: str, dtype: torch.dtype) -> None:
    packed = pack(random_weight(40, K, bits, 96, zeros, order="shuffled" if bits == 3 else "none"))
    x = torch.randn(M, K, generator=torch.Generator().manual_seed(bits)).to(dtype)
    check(lambda part: linear(part, packed), x, SIZES)


def test_every_batch_from_1_to_512() -> None:
    packed = pack(random_weight(16, 128, 4, 64, "integer"))
    check(lambda part: linear(part, packed), torch.randn(M, 128), list(range(1, M + 1)))


def test_fp8_and_int8_activations() -> None:
    x = torch.randn(M, K).bfloat16()
    fp8 = pack(random_weight(40, K, 8, None, kind="fp8_e4m3"))
    check(lambda part: linear(part, fp8), x, SIZES)
    int4 = pack(random_weight(40, K, 4, 96))
    check(lambda part: linear_a8(part, int4), x, SIZES)
    w8a8 = pack_int8(torch.randint(-128, 128, (40, K), dtype=torch.int8), torch.rand(40))
    check(lambda part: linear_int8(part, w8a8), x, SIZES)


def test_without_it_few_rows_may_have_another_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the padding is for: a kernel for one row that sums in several chains."""
    monkeypatch.delenv("VLLM_BATCH_INVARIANT")
    packed = pack(random_weight(64, 512, 4, 128, "integer"))
    x = torch.randn(8, 512)
    assert torch.allclose(linear(x[:1], packed), linear(x, packed)[:1], rtol=1e-4, atol=1e-5)
