"""Reading words natively is bitwise what the PyTorch reference reads, for every layout, bits and shard."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.weights import random_weight
from vllm_quant_kernels.canonical import CanonicalWeight, concat_rows
from vllm_quant_kernels.cpu import library
from vllm_quant_kernels.cpu.layout import pack_planes
from vllm_quant_kernels.cpu.pack import pack, unpack
from vllm_quant_kernels.unpack import WordCodes, WordLayout
from vllm_quant_kernels.unpack_weight import StoredWeight, stack_rows

LAYOUTS: list[tuple[WordLayout, int]] = [
    *(("n", bits) for bits in (2, 4, 8)),
    *((layout, bits) for layout in ("k", "k_rows", "k_padded") for bits in range(2, 9)),
]  # type: ignore[list-item]
needs_library = pytest.mark.skipif(not library.available(), reason="no native library is built here")


def random_words(layout: WordLayout, bits: int, n: int, k: int, generator: torch.Generator) -> torch.Tensor:
    """Words with room for (n, k) codes, every bit random, the unused ones too."""
    shape = {
        "n": (k, -(-n * bits // 32)),
        "k": (-(-k * bits // 32), n),
        "k_rows": (n, -(-k * bits // 32)),
        "k_padded": (n, -(-k // (32 // bits))),
    }[layout]
    return torch.randint(-(1 << 31), 1 << 31, shape, dtype=torch.int32, generator=generator)


@st.composite
def word_codes(draw: st.DrawFn) -> WordCodes:
    """Any part of any matrix: ranges that start and end inside words, panels and blocks."""
    layout, bits = draw(st.sampled_from(LAYOUTS))
    n, k = draw(st.integers(1, 150)), draw(st.integers(1, 600))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    step = draw(st.sampled_from([1, 16]))
    row, column = draw(st.integers(0, (n - 1) // step)) * step, draw(st.integers(0, k - 1))
    words = random_words(layout, bits, n, k, generator)
    return WordCodes(words, layout, bits, draw(st.integers(1, n - row)), draw(st.integers(1, k - column)), row, column)


@settings(max_examples=150, deadline=None)
@given(word_codes())
def test_codes_equal_the_reference(codes: WordCodes) -> None:
    expected = codes.reference()
    assert expected.shape == (codes.n, codes.k)
    assert torch.equal(codes.tensor(), expected)


@needs_library
@settings(max_examples=100, deadline=None)
@given(word_codes(), st.booleans(), st.integers(1, 3))
def test_planes_equal_those_of_the_unpacked_codes(codes: WordCodes, permuted: bool, threads: int) -> None:
    if not codes.native:
        return
    n, k, bits = codes.n, codes.k, codes.bits
    rows, columns = -(-n // 16) * 16, -(-k // 32) * 32
    order = torch.arange(columns)
    order[k:] = -1
    if permuted:
        order = order[torch.randperm(columns, generator=torch.Generator().manual_seed(columns))]
    padded = torch.zeros(rows, columns, dtype=torch.uint8)
    padded[:n, order >= 0] = codes.reference()[:, order[order >= 0]]
    out = torch.full((rows * columns * bits // 8,), 0xAA, dtype=torch.uint8)
    torch.set_num_threads(threads)
    codes.pack_into(out, order.int() if permuted else None, columns)
    assert torch.equal(out, pack_planes(padded, bits))


@pytest.mark.parametrize(("layout", "bits"), LAYOUTS)
def test_every_layout_at_the_size_of_a_model(layout: WordLayout, bits: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    codes = WordCodes(random_words(layout, bits, 320, 1056, generator), layout, bits, 320, 1056)
    assert codes.native == library.available()
    assert torch.equal(codes.tensor(), codes.reference())


def stored(n: int, k: int, seed: int, zeros: bool = True) -> StoredWeight:
    generator = torch.Generator().manual_seed(seed)
    table = torch.randint(0, 16, (n, k // 32), dtype=torch.uint8, generator=generator) if zeros else None
    codes = WordCodes(random_words("k", 4, n, k, generator), "k", 4, n, k)
    return StoredWeight((codes,), torch.rand(n, k // 32, generator=generator), 32, table)


def assert_same(got: CanonicalWeight, wanted: CanonicalWeight) -> None:
    assert (got.bits, got.group_size, got.out_features) == (wanted.bits, wanted.group_size, wanted.out_features)
    assert torch.equal(got.codes, wanted.codes)
    assert torch.equal(got.dequantize(torch.float64), wanted.dequantize(torch.float64))


@pytest.mark.parametrize("rows", [(0, 32), (16, 48), (5, 61), (40, 40)])
@pytest.mark.parametrize("columns", [(0, 128), (32, 96), (64, 128)])
def test_slices_of_a_stored_weight(rows: tuple[int, int], columns: tuple[int, int]) -> None:
    both = stack_rows([stored(32, 128, 0), stored(32, 128, 1)])
    assert isinstance(both, StoredWeight)
    got = both.rows(*rows).columns(*columns)
    assert "codes" not in vars(both)
    assert_same(got.validate(), both.plain().rows(*rows).columns(*columns))


@pytest.mark.parametrize("parts", [(32, 48), (24, 40), (16, 7)])
def test_stacked_parts_pack_as_one_matrix(parts: tuple[int, ...]) -> None:
    """Parts that end inside a panel are unpacked first; the others never are."""
    weights: list[CanonicalWeight] = [stored(n, 128, n, zeros=n != 48) for n in parts]
    whole = stack_rows(weights)
    packed = pack(whole)
    in_panels = all(n % 16 == 0 for n in parts[:-1])
    assert ("codes" in vars(whole)) == (not in_panels or not library.available())
    expected = pack(concat_rows([w.plain() for w in weights]))
    for name in ("data", "scales", "zeros"):
        assert torch.equal(getattr(packed, name), getattr(expected, name))
    assert_same(unpack(packed), whole)


def test_stored_and_plain_parts_stack() -> None:
    parts = [stored(32, 128, 3), random_weight(16, 128, 4, 32, "integer")]
    whole = stack_rows(parts)
    assert not isinstance(whole, StoredWeight)
    assert torch.equal(whole.codes, torch.cat([p.codes for p in parts]))


def test_act_order() -> None:
    weight = stored(32, 128, 5)
    g_idx = (torch.arange(128) // 32)[torch.randperm(128, generator=torch.Generator().manual_seed(0))].int()
    mixed = StoredWeight(weight.parts, weight.scales, 32, weight.zeros, g_idx)
    expected = pack(mixed.plain())
    got = pack(StoredWeight(weight.parts, weight.scales, 32, weight.zeros, g_idx))
    assert torch.equal(got.data, expected.data)
    assert expected.perm is not None


GOOD = WordCodes(torch.zeros(16, 32, dtype=torch.int32), "k", 4, 32, 128)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 33}, r"codes \[0, 33\) x \[0, 128\) are not in 4-bit words"),
        ({"k": 129}, "are not in 4-bit words"),
        ({"row": 1}, "are not in 4-bit words"),
        ({"column": -1}, "are not in 4-bit words"),
        ({"n": -1}, "are not in 4-bit words"),
        ({"bits": 9}, "no layout k of 9 bits"),
        ({"bits": 3, "layout": "n"}, "no layout n of 3 bits"),
        ({"layout": "z"}, "unknown layout"),
        ({"words": torch.zeros(16, 32)}, "int32"),
        ({"words": torch.zeros(512, dtype=torch.int32)}, "2-D"),
    ],
)
def test_what_is_outside_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(GOOD, **change)  # type: ignore[arg-type]


@needs_library
def test_the_library_checks_for_itself() -> None:
    """What the Python side would refuse, and buffers of another size."""
    words, out = torch.zeros(16, 32, dtype=torch.int32), torch.zeros(32 * 128, dtype=torch.uint8)
    call = library.load().vqp_unpack_words
    fine = [words.data_ptr(), 16, 32, 1, 4, 0, 32, 0, 128, out.data_ptr(), 1]
    assert call(*fine) == 0
    # Words, layout, bits, row, n, column, k: each beyond what the words hold.
    for position, value in {1: 15, 2: 31, 3: 4, 4: 9, 5: 1, 6: 33, 7: 1, 8: 129}.items():
        assert call(*[value if i == position else item for i, item in enumerate(fine)]) == 1
    with pytest.raises(ValueError, match="out must be"):
        GOOD.pack_into(out, None, 128)
    with pytest.raises(ValueError, match="order must be"):
        GOOD.pack_into(out[: 32 * 128 // 2], torch.zeros(128, dtype=torch.int64), 128)
    with pytest.raises(ValueError, match="perm"):
        GOOD.pack_into(out[: 32 * 128 // 2], torch.full((128,), 128, dtype=torch.int32), 128)
