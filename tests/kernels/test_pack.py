"""Packing loses nothing, pads with nothing, and refuses what is not its own."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.weights import random_weight, weights
from vllm_quant_kernels.canonical import CanonicalWeight
from vllm_quant_kernels.cpu import native
from vllm_quant_kernels.cpu.layout import PLANES, kind_code, pack_planes, unpack_planes
from vllm_quant_kernels.cpu.ops import linear
from vllm_quant_kernels.cpu.pack import pack, pack_int8, unpack, unpack_int8


@settings(max_examples=60, deadline=None)
@given(weights())
def test_round_trip(w: CanonicalWeight) -> None:
    back = unpack(pack(w))
    assert torch.equal(back.codes, w.codes)
    assert torch.equal(back.scales, w.scales)
    assert torch.equal(back.group_index(), w.group_index())
    assert (back.bits, back.group_size, back.kind) == (w.bits, w.group_size, w.kind)
    assert torch.equal(back.dequantize(torch.float64), w.dequantize(torch.float64))


@given(st.integers(2, 8), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_planes_are_a_bijection_of_bytes(bits: int, panels: int, blocks: int, seed: int) -> None:
    data = torch.randint(
        0, 256, (panels * blocks * 64 * bits,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    assert torch.equal(pack_planes(unpack_planes(data, bits, 16 * panels), bits), data)


@given(st.integers(2, 8), st.integers(1, 50), st.integers(1, 100), st.booleans(), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_native_packing_equals_torch(bits: int, n: int, k: int, permuted: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 1 << bits, (n, k), dtype=torch.uint8, generator=generator)
    rows, columns = -(-n // 16) * 16, -(-k // 32) * 32
    source = torch.arange(columns)
    source[k:] = -1
    if permuted:
        source = source[torch.randperm(columns, generator=generator)]
    padded = torch.zeros(rows, columns, dtype=torch.uint8)
    padded[:n, source >= 0] = codes[:, source[source >= 0]]
    packed = native.pack_planes(codes, bits, source.int() if permuted else None, columns)
    assert torch.equal(packed, pack_planes(padded, bits))


def test_layout_is_the_one_drawn() -> None:
    """Channel 3, k = 32 + 8 * 2 + 2 * 1 + 1: block 1, vector 2, field 1, word 1 of a 4-bit plane."""
    codes = torch.zeros(16, 64, dtype=torch.uint8)
    codes[3, 32 + 19] = 0xF
    where = pack_planes(codes, 4).nonzero().flatten().tolist()
    assert where == [256 + 2 * 64 + 3 * 4 + 2]
    assert pack_planes(codes, 4)[where[0]] == 0xF0


def test_bit_planes_sum_to_the_bits() -> None:
    assert {bits: sum(widths) for bits, widths in PLANES.items()} == {bits: bits for bits in range(2, 9)}


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_size_is_bits_per_weight(bits: int) -> None:
    assert pack(random_weight(32, 256, bits, 64)).data.nbytes == 32 * 256 * bits // 8


def test_ordinary_groups_need_no_gather() -> None:
    assert pack(random_weight(16, 256, 4, 32)).perm is None
    assert pack(random_weight(16, 100, 4, None)).perm is None
    w = random_weight(16, 256, 4, 32)
    in_order = dataclasses.replace(w, g_idx=(torch.arange(256) // 32).int())
    assert pack(in_order).perm is None


def test_shard_that_uses_few_of_its_groups() -> None:
    w = random_weight(16, 256, 4, 64, order="none")
    shard = dataclasses.replace(w, codes=w.codes[:, :64], g_idx=torch.zeros(64, dtype=torch.int32))
    x = torch.randn(2, 64)
    assert torch.allclose(linear(x, pack(shard)).double(), x.double() @ shard.dequantize(torch.float64).T, atol=1e-5)
    assert torch.equal(unpack(pack(shard)).scales, w.scales)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": 2 << 8}, "layout version 2"),
        ({"kind": kind_code("int") + 9}, "unknown weight kind"),
        ({"bits": 3}, "data must be"),
        ({"n": 64}, "scales must be"),
        ({"k": 512}, "do not make K"),
        ({"group_size": 64}, "do not make K"),
        ({"bits": 9}, "bits must be"),
    ],
)
def test_wrong_layout_is_refused(change: dict[str, int], message: str) -> None:
    packed = dataclasses.replace(pack(random_weight(32, 256, 4, 32)), **change)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        unpack(packed)


def test_weights_that_are_not_finite_are_refused() -> None:
    w = random_weight(16, 32, 8, kind="fp8_e4m3")
    w.codes[5, 7] = 0xFF
    with pytest.raises(ValueError, match="NaN"):
        pack(w)
    w = random_weight(16, 32)
    w.scales[0, 0] = float("inf")
    with pytest.raises(ValueError, match="scales hold"):
        pack(w)


@given(st.integers(1, 50), st.integers(1, 200), st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_int8_round_trip(n: int, k: int, seed: int) -> None:
    codes = torch.randint(-128, 128, (n, k), dtype=torch.int8, generator=torch.Generator().manual_seed(seed))
    packed = pack_int8(codes, torch.ones(n, 1))
    assert torch.equal(unpack_int8(packed.data, n, k), codes)
    assert torch.equal(packed.sums[:n], codes.sum(1, dtype=torch.int32))


def test_int8_refuses_other_shapes() -> None:
    codes = torch.zeros(16, 64, dtype=torch.int8)
    with pytest.raises(ValueError, match="int8"):
        pack_int8(codes.to(torch.uint8), torch.ones(16))
    with pytest.raises(ValueError, match="scales"):
        pack_int8(codes, torch.ones(15))
    with pytest.raises(ValueError, match="data must be"):
        unpack_int8(pack_int8(codes, torch.ones(16)).data, 48, 64)
