"""Every field of the canonical weight against plain torch: values, scales of two levels, shards and stacks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.kernels.weights import random_weight
from vllm_quant_kernels import dequantized_linear
from vllm_quant_kernels.canonical import FLOATS, CanonicalWeight, Kind, concat_rows, float_values, kind_of
from vllm_quant_kernels.cpu.pack import pack
from vllm_quant_kernels.cuda.pack import pack_cuda
from vllm_quant_kernels.dequantizing import Dequantizing
from vllm_quant_kernels.scheme import E2M1, E4M3, PER_CHANNEL, Codebook, Float, Int, ScaleType, VectorCodebook
from vllm_quant_kernels.scheme import WeightScheme as Scheme

N, K, GROUP = 6, 64, 16
CODES = torch.randint(0, 16, (N, K), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
SCALES = torch.rand(N, K // GROUP, generator=torch.Generator().manual_seed(1)) + 0.5
TABLE = torch.randn(16, generator=torch.Generator().manual_seed(2))
TABLES = torch.randn(N, 16, generator=torch.Generator().manual_seed(3))
VECTORS = torch.randn(512, 8, generator=torch.Generator().manual_seed(4))
VECTOR_CODES = torch.randint(0, 512, (N, K // 8), dtype=torch.int16, generator=torch.Generator().manual_seed(5))
SUPER = torch.rand(N, 2, generator=torch.Generator().manual_seed(6)) + 0.5
SMALL_SCALES = torch.randint(1, 64, (N, K // GROUP), dtype=torch.uint8, generator=torch.Generator().manual_seed(7))

WEIGHTS = {
    "table": CanonicalWeight(CODES, SCALES, 4, GROUP, kind="codebook", table=TABLE),
    "table-per-channel": CanonicalWeight(CODES, SCALES, 4, GROUP, kind="codebook", table=TABLES),
    "vectors": CanonicalWeight(VECTOR_CODES, SCALES, 9, GROUP, kind="codebook", table=VECTORS, dim=8),
    "super-scales": CanonicalWeight(CODES, SMALL_SCALES, 4, GROUP, super_scales=SUPER, per_super=2),
    "super-scales-ragged": CanonicalWeight(CODES, SMALL_SCALES, 4, GROUP, super_scales=SUPER, per_super=3),
    "one-super-scale": CanonicalWeight(
        CODES, SCALES.to(torch.float8_e4m3fn), 4, GROUP, kind="fp4_e2m1", super_scales=torch.tensor([[0.37]])
    ),
    "zeros": CanonicalWeight(CODES, SCALES, 4, GROUP, zeros=SMALL_SCALES % 16),
    "act-order": CanonicalWeight(
        CODES, SMALL_SCALES, 4, GROUP, super_scales=SUPER, per_super=2,
        g_idx=(torch.randperm(K, generator=torch.Generator().manual_seed(8)) // GROUP).int(),
    ),
}  # fmt: skip
SCHEMES = {
    "table": Scheme(Codebook(4, "nf4"), GROUP, scale=ScaleType("float32")),
    "table-per-channel": Scheme(Codebook(4, scope="channel"), GROUP, scale=ScaleType("float32")),
    "vectors": Scheme(VectorCodebook(8, 9, "grid"), GROUP, scale=ScaleType("float32")),
    "super-scales": Scheme(Int(4), GROUP, scale=ScaleType("int6", 2)),
    "super-scales-ragged": Scheme(Int(4), GROUP, scale=ScaleType("int6", 3)),
    "one-super-scale": Scheme(E2M1, GROUP, scale=ScaleType("e4m3", 0)),
    "zeros": Scheme(Int(4), GROUP, symmetric=False, scale=ScaleType("float32")),
    "act-order": Scheme(Int(4), GROUP, act_order=True, scale=ScaleType("int6", 2)),
}


def by_hand(name: str) -> torch.Tensor:
    """float64 (N, K), element by element."""
    w, out = WEIGHTS[name], torch.empty(N, K, dtype=torch.float64)
    for n in range(N):
        for k in range(K):
            g = int(w.g_idx[k]) if w.g_idx is not None else k // GROUP
            scale = float(w.scales[n, g].double())
            if w.super_scales is not None:
                scale *= float(w.super_scales[n, g // w.per_super] if w.per_super else w.super_scales[0, 0])
            code = int(w.codes[n, k // w.dim])
            if w.kind == "codebook":
                assert w.table is not None
                row = w.table[code] if w.dim > 1 else w.table[n] if w.table.ndim == 2 else w.table
                value = float(row[k % w.dim] if w.dim > 1 else row[code])
            elif w.kind == "fp4_e2m1":
                value = [0, 0.5, 1, 1.5, 2, 3, 4, 6][code % 8] * (-1 if code >= 8 else 1)
            else:
                value = code - (8 if w.zeros is None else int(w.zeros[n, g]))
            out[n, k] = value * scale
    return out


@pytest.mark.parametrize("name", WEIGHTS)
def test_dequantize_is_the_definition(name: str) -> None:
    w = WEIGHTS[name].validate()
    assert (w.out_features, w.in_features) == (N, K)
    exact = by_hand(name)
    assert torch.allclose(w.dequantize(torch.float64), exact, rtol=1e-12, atol=0)
    assert torch.allclose(w.dequantize().double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", WEIGHTS)
def test_shards_and_stacks(name: str) -> None:
    w = WEIGHTS[name]
    whole = w.dequantize(torch.float64)
    assert torch.equal(w.rows(2, 5).validate().dequantize(torch.float64), whole[2:5])
    for start, stop in ((0, 32), (16, 48), (32, 64), (48, 64)):
        assert torch.equal(w.columns(start, stop).validate().dequantize(torch.float64), whole[:, start:stop])
    stacked = concat_rows([w.rows(0, 1), w.rows(1, 4), w.rows(4, N)]).validate()
    assert torch.equal(stacked.dequantize(torch.float64), whole)
    padded = w.pad_rows(N + 3).validate().dequantize(torch.float64)
    assert torch.equal(padded[:N], whole)
    assert padded.shape == (N + 3, K)
    assert not padded[N:].any()


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_dequantizing_kernel_keeps_every_field(name: str) -> None:
    w, scheme, kernel = WEIGHTS[name], SCHEMES[name], Dequantizing()
    packed = kernel.pack(w, scheme)
    assert packed.nbytes == kernel.packed_bytes(scheme, N, K)
    assert torch.equal(kernel.dequantize(packed, packed.tensors), w.dequantize())


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("tile", [1, 1 << 21])
def test_the_dequantizing_kernel_takes_tile_by_tile(name: str, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same numbers whatever the tile; in float64 sums of float32 products stay exact enough to compare."""
    monkeypatch.setattr(dequantized_linear, "TILE", tile)
    monkeypatch.setattr(dequantized_linear, "ROWS", 3)
    w, kernel = WEIGHTS[name], Dequantizing()
    packed = kernel.pack(w, SCHEMES[name])
    x, bias = torch.randn(2, 3, K, dtype=torch.float64), torch.randn(N)
    found = kernel.apply(packed, packed.tensors, x, bias)
    exact = x @ w.dequantize().double().T + bias.double()
    assert found.shape == (2, 3, N)
    assert torch.allclose(found, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_dequantizing_kernel_keeps_packed_codes(bits: int) -> None:
    w = random_weight(40, 96, bits, 32, "integer", scale_dtype=torch.float16)
    packed = Dequantizing().pack(w, Scheme(Int(bits), 32, symmetric=False))
    codes = packed.tensors[""]
    assert codes is not None
    assert codes.nbytes == 40 * 96 * bits // 8
    assert torch.equal(Dequantizing().dequantize(packed, packed.tensors), w.dequantize())


@pytest.mark.parametrize("change", ["table", "super_scales"])
def test_stacked_parts_may_differ_in_what_a_tensor_has_once(change: str) -> None:
    first = WEIGHTS["table" if change == "table" else "one-super-scale"]
    value = getattr(first, change)
    second = replace(first, **{change: value * 2})
    stacked = concat_rows([first, second]).validate()
    assert torch.equal(stacked.dequantize(), torch.cat([first.dequantize(), second.dequantize()]))


def test_what_cannot_be_stacked_is_refused() -> None:
    vectors = WEIGHTS["vectors"]
    with pytest.raises(ValueError, match="tables of vectors"):
        concat_rows([vectors, replace(vectors, table=VECTORS + 1)])
    nested = WEIGHTS["super-scales"]
    with pytest.raises(ValueError, match="levels of scales"):
        concat_rows([nested, replace(nested, scales=SCALES, super_scales=None, per_super=0)])


@pytest.mark.parametrize("kind", ["fp6_e3m2", "fp6_e2m3", "fp4_e2m1"])
def test_small_floats(kind: Kind) -> None:
    """Against the formula of the OCP Microscaling formats; the largest values are theirs."""
    value = FLOATS[kind]
    found = float_values(value)
    assert max(found) == {"fp6_e3m2": 28.0, "fp6_e2m3": 7.5, "fp4_e2m1": 6.0}[kind]
    assert len(found) == 1 << value.bits
    magnitudes = found[: len(found) // 2]
    assert list(magnitudes) == sorted(set(magnitudes))
    codes = torch.arange(len(found), dtype=torch.uint8).view(1, -1)
    w = CanonicalWeight(codes, torch.ones(1, 1), value.bits, codes.shape[1], kind=kind).validate()
    assert w.dequantize().flatten().tolist() == list(found)


def test_float_values_are_torchs_where_torch_has_them() -> None:
    """E4M3 and E5M2 by the same formula, up to their infinities and NaNs."""
    for value, dtype, finite in ((E4M3, torch.float8_e4m3fn, 0x7F), (Float(5, 2), torch.float8_e5m2, 0x7C)):
        expected = torch.arange(finite, dtype=torch.uint8).view(dtype).double().tolist()
        assert list(float_values(value))[:finite] == expected


def test_kinds_of_value_types() -> None:
    assert [kind_of(v) for v in (Int(3), E4M3, E2M1, Codebook(4, "nf4"))] == ["int", "fp8_e4m3", "fp4_e2m1", "codebook"]
    with pytest.raises(ValueError, match="E5M10"):
        kind_of(Float(5, 10))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("table", {"table": TABLE[:8]}, "table must be"),
        ("table", {"table": None}, "table belongs to codebooks"),
        ("zeros", {"dim": 8}, "dim > 1"),
        ("table", {"zeros": SMALL_SCALES}, "only integer weights"),
        ("super-scales", {"per_super": 1}, "super_scales must be"),
        ("super-scales", {"super_scales": None}, "scales must be floating"),
        ("one-super-scale", {"bits": 8}, "bits must be 4 for fp4_e2m1"),
        ("vectors", {"bits": 8}, "exceed 8 bits|table must be"),
    ],
)
def test_malformed_fields_are_named(name: str, change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(WEIGHTS[name], **change).validate()  # type: ignore[arg-type]


def test_columns_do_not_cut_a_code() -> None:
    w = replace(WEIGHTS["vectors"], scales=SCALES[:, :1], group_size=K)
    with pytest.raises(ValueError, match="cut a code of 8"):
        w.columns(4, 64)
    assert torch.equal(w.columns(8, 64).dequantize(), w.dequantize()[:, 8:])


@pytest.mark.parametrize("name", [name for name in WEIGHTS if name != "zeros"])
def test_native_kernels_refuse_what_they_do_not_read(name: str) -> None:
    for pack_it in (pack, pack_cuda):
        with pytest.raises(ValueError, match="one level of scales"):
            pack_it(WEIGHTS[name])  # type: ignore[operator]


def test_one_scale_per_channel_has_one_group() -> None:
    w = CanonicalWeight(CODES, SCALES[:, :1], 4, K, kind="codebook", table=TABLE)
    assert torch.equal(w.columns(5, 9).dequantize(), w.dequantize()[:, 5:9])
    assert Scheme(Codebook(4), PER_CHANNEL).groups(K) == 1
