"""Index maps, packing and dequantization of the CUDA kernels, run on the CPU from the kernels' own functions."""

from __future__ import annotations

import ctypes

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cuda import emulated
from tests.kernels.weights import random_weight, weights
from vllm_quant_kernels.cuda.layout import FP8, bits_of, pack_codes, unpack_codes
from vllm_quant_kernels.cuda.pack import dequantize_cuda, pack_cuda

KINDS = [2, 3, 4, 5, 6, 7, 8, FP8]


def random_codes(rows: int, columns: int, bits: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 1 << bits, (rows, columns), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("bits", range(2, 9))
def test_packed_codes_come_back(bits: int) -> None:
    codes = random_codes(48, 192, bits)
    data = pack_codes(codes, bits)
    assert data.numel() * 8 == codes.numel() * bits, "no bit is wasted"
    assert torch.equal(unpack_codes(data, bits, 48), codes)


@pytest.mark.parametrize("bits", [3, 4, 7, 8])
def test_every_bit_of_the_layout_belongs_to_one_code(bits: int) -> None:
    codes = random_codes(16, 64, bits)
    data = pack_codes(codes, bits)
    seen = torch.zeros_like(data)
    for row in range(0, 16, 5):
        for column in range(64):
            changed = codes.clone()
            changed[row, column] ^= (1 << bits) - 1
            difference = pack_codes(changed, bits) ^ data
            assert sum(int(byte).bit_count() for byte in difference) == bits
            assert not (difference & seen).any()
            seen |= difference


@pytest.mark.parametrize("kind", KINDS)
def test_the_device_packs_the_same_bytes(kind: int) -> None:
    n, k, k_padded = 37, 150, 192
    codes = random_codes(n, k, bits_of(kind))
    padded = torch.zeros(48, k_padded, dtype=torch.uint8)
    padded[:n, :k] = codes
    assert torch.equal(emulated.pack(codes, kind, k_padded, None), pack_codes(padded, bits_of(kind)))
    perm = torch.full((k_padded,), -1, dtype=torch.int32)
    slots = torch.randperm(k_padded, generator=torch.Generator().manual_seed(1))[:k]
    perm[slots] = torch.randperm(k, generator=torch.Generator().manual_seed(2)).int()
    padded.zero_()
    padded[:n, slots] = codes[:, perm[slots].long()]
    assert torch.equal(emulated.pack(codes, kind, k_padded, perm), pack_codes(padded, bits_of(kind)))


@settings(deadline=None, max_examples=60)
@given(weight=weights())
def test_the_packed_form_dequantizes_to_the_canonical_weight(weight) -> None:  # type: ignore[no-untyped-def]
    if weight.kind == "fp8_e5m2":
        with pytest.raises(ValueError, match="E4M3"):
            pack_cuda(weight)
        return
    packed = pack_cuda(weight)
    expected = weight.dequantize(torch.float64)
    found = dequantize_cuda(packed, torch.float64)
    if weight.zeros is not None and weight.zeros.is_floating_point():
        # Stored as zero - 2**(bits-1) in float32.
        step = weight.scales.double().abs().max() * 2**weight.bits * 2**-24
        assert (found - expected).abs().max() <= step
    else:
        assert torch.equal(found, expected)
    assert packed.k_padded % 64 == 0
    assert 0 <= packed.padding < 1


def soft_values(words: torch.Tensor, half: bool) -> torch.Tensor:
    """int32 pairs to float (..., 2)."""
    dtype = torch.float16 if half else torch.bfloat16
    return words.contiguous().view(dtype).view(*words.shape, 2).double()


@pytest.mark.parametrize("half", [True, False], ids=["fp16", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_fragments_hold_code_minus_zero_exactly(kind: int, half: bool) -> None:
    """What each lane puts into each register is the element that mma.m16n8k16 expects there, for every zero point."""
    bits = bits_of(kind)
    codes = random_codes(16, 64, bits, seed=kind)
    if kind == FP8:
        codes[(codes & 0x7F) == 0x7F] = 0x7E
        codes.view(-1)[:254] = torch.cat((torch.arange(127), torch.arange(128, 255))).to(torch.uint8)
        values = codes.view(torch.float8_e4m3fn).double()
    else:
        codes.view(-1)[: 1 << bits] = torch.arange(1 << bits).to(torch.uint8)
        values = codes.double()
    data = emulated.aligned(pack_codes(codes, bits))
    assert data is not None
    step, lane, reg, pair = torch.meshgrid(*(torch.arange(size) for size in (4, 32, 4, 2)), indexing="ij")
    # PTX ISA, fragments of mma.m16n8k16 with 16-bit A: groupID = lane >> 2, threadID_in_group = lane % 4.
    row = torch.where((reg == 0) | (reg == 2), lane >> 2, (lane >> 2) + 8)
    column = 16 * step + (lane % 4) * 2 + pair + torch.where(reg >= 2, 8, 0)
    largest = 0 if kind == FP8 else 255 if half or bits == 8 else 128
    for zero in sorted({0, 1, 1 << (bits - 1), (1 << bits) - 1, 77, 128, 255}):
        if zero <= largest:
            found = soft_values(emulated.fragments(data, kind, half, zero), half)
            assert torch.equal(found, values[row, column] - zero), f"zero point {zero}"


@pytest.mark.parametrize("half", [True, False], ids=["fp16", "bf16"])
def test_the_software_16_bit_floats_round_as_torch_does(half: bool) -> None:
    dtype = torch.float16 if half else torch.bfloat16
    generator = torch.Generator().manual_seed(3)
    wide = torch.randint(-(1 << 31), 1 << 31, (3000,), generator=generator, dtype=torch.int64).int().view(torch.float32)
    ties = (torch.arange(-2050, 2050) * 0.5 + 2048).float()
    special = torch.tensor(
        [0.0, -0.0, 6.1e-5, 5.96e-8, 2.98e-8, 2.9e-8, 65504.0, 65519.9, 65520.0, torch.inf, -torch.inf]
    )
    for value in torch.cat((wide, ties, special)).tolist():
        found = emulated.library().vqp_emulator_round(value, int(half))
        expected = torch.tensor(value, dtype=torch.float32).to(dtype)
        assert found & 0x7FFF > (0x7C00 if half else 0x7F80) if value != value else (
            found == int(expected.view(torch.int16)) & 0xFFFF
        )  # fmt: skip
    every = torch.arange(1 << 16).to(torch.int32).to(torch.uint16).view(dtype).double()
    emulated_values = torch.tensor(
        [emulated.library().vqp_emulator_value(i, int(half)) for i in range(1 << 16)], dtype=torch.float64
    )
    assert torch.equal(every.nan_to_num(nan=7e99), emulated_values.nan_to_num(nan=7e99))


@given(tiles=st.integers(1, 4000), splits=st.integers(1, 8))
def test_splits_cut_k_into_even_runs_without_gaps(tiles: int, splits: int) -> None:
    begin, end, at = ctypes.c_int(), ctypes.c_int(), 0
    sizes = []
    for split in range(splits):
        emulated.library().vqp_emulator_split(tiles, splits, split, ctypes.byref(begin), ctypes.byref(end))
        assert begin.value == at
        at = end.value
        sizes.append(end.value - begin.value)
    assert at == tiles
    assert max(sizes) - min(sizes) <= 1


def test_activations_fill_a_stage_without_overlap_and_ldmatrix_reads_every_bank_once() -> None:
    offset = emulated.library().vqp_emulator_x_offset
    places = {offset(token, chunk) for token in range(64) for chunk in range(16)}
    assert places == {16 * i for i in range(64 * 16)}
    for token in range(0, 64, 8):
        for chunk in range(16):
            banks = {offset(token + row, chunk) // 16 % 8 for row in range(8)}
            assert len(banks) == 8


def test_a_shuffled_weight_keeps_whole_groups_together() -> None:
    """Act-order over equal groups of 128 needs no padding and no repeated scales."""
    packed = pack_cuda(random_weight(32, 512, 4, 128, order="shuffled"))
    assert packed.group_size == 128
    assert packed.scales.shape[1] == 4
    assert packed.padding == 0
    shard = pack_cuda(random_weight(32, 512, 4, 128, order="shard"))
    assert shard.group_size >= 16
    assert shard.padding < 0.35
