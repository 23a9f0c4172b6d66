"""Every format: what ``pack`` writes satisfies ``specs``, and ``unpack`` gives the canonical weight back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_quant_kernels.canonical import CanonicalWeight, kind_of
from vllm_quant_kernels.scheme import E4M3, E5M2, PER_CHANNEL, PER_TENSOR, Float, Int
from vllm_quant_plugin.errors import CheckpointError
from vllm_quant_plugin.formats import get_format
from vllm_quant_plugin.formats.bits import (
    pack_dense,
    pack_padded,
    unpack_dense,
    unpack_padded,
)
from vllm_quant_plugin.formats.compressed_tensors import FLOAT_QUANTIZED, INT_QUANTIZED, PACK_QUANTIZED
from vllm_quant_plugin.formats.dense import rows_at_a_time
from vllm_quant_plugin.formats.gptq import GPTQ_V1, GPTQ_V2
from vllm_quant_plugin.formats.words import dense_words, padded_words
from vllm_quant_plugin.rtn import quantize_fp8, quantize_int
from vllm_quant_plugin.schemes import Storage, StoredScheme

GROUPS = (PER_CHANNEL, 16, 32, 64, 128)


def random_weight(scheme: StoredScheme, n: int, k: int, seed: int, *, zeros: bool) -> CanonicalWeight:
    """A canonical weight with every code, zero point and permutation that ``scheme`` allows."""
    generator = torch.Generator().manual_seed(seed)
    groups = scheme.groups(k)
    codes = torch.randint(0, 1 << scheme.bits, (n, k), generator=generator, dtype=torch.uint8)
    scales = torch.rand(n, groups, generator=generator).half() + 0.5
    points = torch.randint(0, 1 << scheme.bits, (n, groups), generator=generator, dtype=torch.uint8)
    g_idx = None
    if scheme.act_order:
        g_idx = (torch.arange(k) // scheme.group_of(k))[torch.randperm(k, generator=generator)].int()
    return CanonicalWeight(
        codes, scales, scheme.bits, scheme.group_of(k), points if zeros else None, kind_of(scheme.value), g_idx
    )


def round_trip(weight: CanonicalWeight, scheme: StoredScheme) -> CanonicalWeight:
    layout = get_format(scheme)
    tensors = layout.pack(weight, scheme)
    n, k = weight.codes.shape
    layout.validate("module", tensors, scheme, n, k)
    return layout.unpack(tensors, scheme, n, k).validate()


def assert_same(got: CanonicalWeight, wanted: CanonicalWeight) -> None:
    assert torch.equal(got.codes, wanted.codes)
    assert torch.equal(got.dequantize(torch.float64), wanted.dequantize(torch.float64))


sizes = {
    "n": st.integers(1, 4).map(lambda i: 32 * i),
    "k": st.sampled_from([128, 256, 384]),
    "seed": st.integers(0, 99),
}


@settings(max_examples=60, deadline=None)
@given(bits=st.sampled_from([2, 4, 8]), group=st.sampled_from(GROUPS), zeros=st.booleans(), **sizes)
def test_awq(bits: int, group: int, zeros: bool, n: int, k: int, seed: int) -> None:
    scheme = StoredScheme(Int(bits), group, symmetric=not zeros, storage=Storage("awq"))
    weight = random_weight(scheme, n, k, seed, zeros=zeros)
    assert_same(round_trip(weight, scheme), weight)


@settings(max_examples=100, deadline=None)
@given(
    bits=st.sampled_from([2, 3, 4, 8]),
    group=st.sampled_from(GROUPS),
    sym=st.booleans(),
    act_order=st.booleans(),
    v2=st.booleans(),
    **sizes,
)
def test_gptq(bits: int, group: int, sym: bool, act_order: bool, v2: bool, n: int, k: int, seed: int) -> None:
    scheme = StoredScheme(Int(bits), group, symmetric=sym, act_order=act_order, storage=GPTQ_V2 if v2 else GPTQ_V1)
    weight = random_weight(scheme, n, k, seed, zeros=not sym)
    assert_same(round_trip(weight, scheme), weight)


@settings(max_examples=100, deadline=None)
@given(bits=st.integers(2, 8), group=st.sampled_from(GROUPS), sym=st.booleans(), act_order=st.booleans(), **sizes)
def test_pack_quantized(bits: int, group: int, sym: bool, act_order: bool, n: int, k: int, seed: int) -> None:
    scheme = StoredScheme(
        Int(bits),
        group,
        symmetric=sym,
        act_order=act_order,
        storage=PACK_QUANTIZED,
    )
    weight = random_weight(scheme, n, k, seed, zeros=not sym)
    assert_same(round_trip(weight, scheme), weight)


@settings(max_examples=60, deadline=None)
@given(group=st.sampled_from((*GROUPS, PER_TENSOR)), sym=st.booleans(), **sizes)
def test_int_quantized(group: int, sym: bool, n: int, k: int, seed: int) -> None:
    scheme = StoredScheme(Int(8), group, symmetric=sym, storage=INT_QUANTIZED)
    weight = random_weight(scheme, n, k, seed, zeros=not sym)
    if group == PER_TENSOR:
        weight.scales[:] = weight.scales[0, 0].clone()
        if weight.zeros is not None:
            weight.zeros[:] = weight.zeros[0, 0].clone()
    assert_same(round_trip(weight, scheme), weight)


@settings(max_examples=60, deadline=None)
@given(
    storage=st.sampled_from([Storage("fp8"), FLOAT_QUANTIZED]),
    value=st.sampled_from([E4M3, E5M2]),
    block=st.sampled_from([None, (64, 64), (128, 128)]),
    rows=st.integers(1, 200),
    k=st.sampled_from([64, 100, 256]),
    seed=st.integers(0, 99),
)
def test_fp8(storage: Storage, value: Float, block: tuple[int, int] | None, rows: int, k: int, seed: int) -> None:
    group = block[1] if block else PER_TENSOR
    scheme = StoredScheme(value, group, block=block, storage=storage)
    weight = random_weight(scheme, rows, k, seed, zeros=False)
    weight.codes[:] = weight.codes & 0xBB  # no infinities or NaN in either format
    step = block[0] if block else rows
    for start in range(0, rows, step):
        weight.scales[start : start + step] = weight.scales[start].clone()
    assert_same(round_trip(weight, scheme), weight)


@settings(max_examples=60, deadline=None)
@given(bits=st.integers(2, 8), count=st.integers(1, 200), rows=st.integers(1, 3), seed=st.integers(0, 99))
def test_words(bits: int, count: int, rows: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 1 << bits, (rows, count), generator=generator, dtype=torch.uint8)
    padded, dense = pack_padded(values, bits), pack_dense(values, bits)
    assert padded.shape[-1] == padded_words(count, bits)
    assert dense.shape[-1] == dense_words(count, bits)
    assert torch.equal(unpack_padded(padded, bits, count), values)
    assert torch.equal(unpack_dense(dense, bits, count), values)


@settings(max_examples=30, deadline=None)
@given(bits=st.sampled_from([3, 5, 6, 7]), sym=st.booleans(), **sizes)
def test_pack_quantized_padded_words(bits: int, sym: bool, n: int, k: int, seed: int) -> None:
    """The padded words of compressed-tensors up to 0.17 are told from the dense ones of 0.18 by their number."""
    scheme = StoredScheme(Int(bits), 32, symmetric=sym, storage=PACK_QUANTIZED)
    weight = random_weight(scheme, n, k, seed, zeros=not sym)
    layout = get_format(scheme)
    tensors = layout.pack(weight, scheme)
    assert tensors["weight_packed"].shape[-1] == dense_words(k, bits) < padded_words(k, bits)
    tensors["weight_packed"] = pack_padded(weight.codes, bits)
    if weight.zeros is not None:
        tensors["weight_zero_point"] = pack_padded(weight.zeros.t().contiguous(), bits).t().contiguous()
    layout.validate("module", tensors, scheme, n, k)
    assert_same(layout.unpack(tensors, scheme, n, k), weight)


@pytest.mark.parametrize(
    "scheme",
    [
        StoredScheme(Int(8), PER_CHANNEL),
        StoredScheme(Int(4), 128, symmetric=False),
        StoredScheme(Int(8), PER_TENSOR),
        StoredScheme(E4M3, PER_CHANNEL),
        StoredScheme(E4M3, 128, block=(128, 128)),
    ],
    ids=lambda scheme: scheme.describe(),
)
def test_dense_by_pieces_is_dense_at_once(scheme: StoredScheme) -> None:
    """Longer than one piece, and no multiple of it."""
    n, k = 3 * rows_at_a_time(256, 1) + 5, 256
    weight = torch.randn(n, k, generator=torch.Generator().manual_seed(0)).bfloat16()
    got = get_format(scheme).unpack({"weight": weight}, scheme, n, k)
    if scheme.is_int:
        wanted = quantize_int(weight, scheme.bits, scheme.group_size, symmetric=scheme.symmetric)
    else:
        block_n = scheme.block[0] if scheme.block else 1
        wanted = quantize_fp8(weight, scheme.group_size, block_n=block_n)
    assert_same(got, wanted)
    assert torch.equal(got.scales, wanted.scales)


AWQ4 = StoredScheme(Int(4), 64, symmetric=False, storage=Storage("awq"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("scales"), r"module\.scales is missing"),
        (lambda t: t.pop("qzeros"), r"module\.qzeros is missing"),
        (lambda t: t.update(qweight=t["qweight"][:, 1:]), r"module\.qweight has shape \[128, 7\], expected \[128, 8\]"),
        (lambda t: t.update(qweight=t["qweight"].float()), r"module\.qweight is float32, expected int32"),
    ],
)
def test_wrong_tensors_are_named(change: object, message: str) -> None:
    tensors = get_format(AWQ4).pack(random_weight(AWQ4, 64, 128, 0, zeros=True), AWQ4)
    change(tensors)  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=message):
        get_format(AWQ4).validate("module", tensors, AWQ4, 64, 128)


@pytest.mark.parametrize(
    ("scheme", "n", "k", "message"),
    [
        (AWQ4, 64, 100, "group_size 64 does not divide in_features 100"),
        (AWQ4, 12, 128, "out_features must be a multiple of 8"),
        (
            StoredScheme(Int(4), 48, storage=GPTQ_V2),
            64,
            128,
            "group_size 48 does not divide in_features 128",
        ),
        (
            StoredScheme(Int(3), -1, storage=GPTQ_V2),
            64,
            100,
            "in_features must be a multiple of 32",
        ),
        (StoredScheme(Int(8), 48), 64, 128, "group_size 48 does not divide in_features 128"),
    ],
)
def test_impossible_sizes(scheme: StoredScheme, n: int, k: int, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        get_format(scheme).tensors(scheme, n, k)


def test_gptq_group_outside_range() -> None:
    scheme = StoredScheme(Int(4), 64, act_order=True, storage=GPTQ_V2)
    tensors = get_format(scheme).pack(random_weight(scheme, 32, 128, 0, zeros=False), scheme)
    tensors["g_idx"][3] = 2
    with pytest.raises(CheckpointError, match=r"g_idx holds a group outside 0\.\.1"):
        get_format(scheme).unpack(tensors, scheme, 32, 128)
