"""The W8A8 GEMMs, thread by thread on the CPU: INT8 bit for bit, FP8 against fp64."""

from __future__ import annotations

import ctypes
import dataclasses
import random
from typing import Any

import pytest
import torch

from tests.cuda import emulated, emulated_w8a8
from tests.kernels.weights import random_weight
from vllm_quant_kernels import reference
from vllm_quant_kernels.canonical import CanonicalWeight
from vllm_quant_kernels.cuda.w8a8 import activation
from vllm_quant_kernels.cuda.w8a8 import native as w8a8_native
from vllm_quant_kernels.cuda.w8a8.activation import FP8, INT8, Activations
from vllm_quant_kernels.cuda.w8a8.choice import TABLE, Table, choose
from vllm_quant_kernels.cuda.w8a8.ops import linear_w8a8
from vllm_quant_kernels.cuda.w8a8.weight import (
    WeightW8A8,
    dequantize_weight,
    make_weight,
    product,
    serves,
)

EPSILON = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def weight(n: int, k: int, kind: str, seed: int = 0) -> WeightW8A8:
    """``kind``: int8, fp8, or fp8-blocks."""
    if kind == "int8":
        return make_weight(random_weight(n, k, 8, None, scale_dtype=torch.float32, seed=seed))
    canonical = random_weight(n, k, 8, None if kind == "fp8" else 128, kind="fp8_e4m3", seed=seed)
    if kind == "fp8-blocks":
        blocks = canonical.scales[::128].repeat_interleave(128, dim=0)[:n].contiguous()
        canonical = CanonicalWeight(canonical.codes, blocks, 8, 128, None, "fp8_e4m3")
    return make_weight(canonical)


def activations(m: int, k: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    x = torch.randn(m, k, generator=torch.Generator().manual_seed(seed))
    x[0, : k // 2] *= 20
    return x.to(dtype)


def check(y: torch.Tensor, a: Activations, w: WeightW8A8, bias: torch.Tensor | None) -> None:
    """INT8: equal. FP8: rounding of the output, and FP32 sums: eps |y| + 2^-20 sum |x| |w|."""
    expected = product(a, w, bias)
    assert torch.isfinite(y).all(), "an output was not written"
    if w.kind == INT8:
        assert torch.equal(y, expected.to(y.dtype))
        return
    size = activation.dequantize(a, w.k).abs() @ dequantize_weight(w, torch.float64).abs().T
    allowed = 1.01 * EPSILON[y.dtype] * expected.abs() + 2.0**-20 * size
    if bias is not None:
        allowed += EPSILON[y.dtype] * bias.double().abs()
    assert ((y.double() - expected.double()).abs() <= allowed).all()


def random_case(number: int) -> dict[str, Any]:
    pick = random.Random(number)
    kind = pick.choice(["int8", "int8", "fp8", "fp8-blocks"])
    m = pick.choice([1, 3, 8, 9, 16, 17, 31, 40])
    scheme = pick.choice(["symmetric", "asymmetric", "static", "static-zero"]) if kind == "int8" else "symmetric"
    return {
        "m": m,
        "n": pick.choice([1, 16, 24, 99, 128, 130, 200]),
        "k": pick.choice([16, 60, 128, 133, 264, 384, 513]),
        "kind": kind,
        "scheme": pick.choice(["symmetric", "static"]) if kind == "fp8" else scheme,
        "dtype": pick.choice(list(EPSILON)),
        "bias": pick.choice([None, torch.float32, torch.bfloat16, torch.float16]),
        "device": pick.choice(["ONE_BLOCK", "SPLITTING", "CLUSTERED"]),
        "splits": pick.choice([0, 0, 2, 3]),
        "promote": pick.random() < 0.5,
        "fused": m <= 16 and kind != "fp8-blocks" and pick.random() < 0.5,
        "late_copies": pick.random() < 0.5,
        "dependent": pick.random() < 0.7,
    }


def scheme_options(scheme: str) -> dict[str, Any]:
    options: dict[str, Any] = {"symmetric": scheme != "asymmetric"}
    if scheme.startswith("static"):
        options["in_scale"] = torch.tensor([0.043])
    if scheme == "static-zero":
        options["in_zero"] = torch.tensor([21], dtype=torch.int32)
    return options


@pytest.mark.parametrize("number", range(56))
def test_random_problems_match_the_reference(number: int) -> None:
    case = random_case(number)
    w = weight(case["n"], case["k"], case["kind"], number)
    x = activations(case["m"], case["k"], case["dtype"], number)
    bias = None if case["bias"] is None else torch.randn(case["n"]).to(case["bias"])
    options = scheme_options(case["scheme"])
    y, _ = emulated_w8a8.linear(
        x, w, bias, case["fused"], promote=case["promote"], device=getattr(emulated, case["device"]),
        splits=min(case["splits"], -(-case["k"] // 128)), seed=number, late_copies=case["late_copies"],
        dependent=case["dependent"], **options,
    )  # fmt: skip
    group = 128 if w.blocks else 0
    check(y, activation.quantize(x, w.kind, group=group, **options), w, bias)


@pytest.mark.parametrize("kind", ["int8", "fp8", "fp8-blocks"])
def test_long_k_wraps_the_ring_and_wide_tiles_cover_many_rows(kind: str) -> None:
    w, x = weight(136, 1300, kind), activations(70, 1300, torch.bfloat16, 1)
    a = activation.quantize(x, w.kind, group=128 if w.blocks else 0)
    results = []
    for seed, late in ((1, True), (2, False)):
        y, plan = emulated_w8a8.linear(x, w, device=emulated.ADA, splits=1, seed=seed, late_copies=late)
        assert plan.tokens == (64 if w.blocks else 128)
        check(y, a, w, None)
        results.append(y)
    assert torch.equal(*results), "the order of warps shows in the result"


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_quantizing_in_the_kernel_changes_nothing(kind: str) -> None:
    """The codes of both ways are the same, so INT8 results are, at any split; FP8 with sums taken over."""
    w, x = weight(72, 700, kind), activations(11, 700, torch.float16, 2)
    for splits in (1, 2, 5):
        apart, _ = emulated_w8a8.linear(x, w, promote=True, splits=splits)
        fused, _ = emulated_w8a8.linear(x, w, fused=True, splits=splits)
        assert torch.equal(apart, fused)


@pytest.mark.parametrize("device", ["SPLITTING", "CLUSTERED"])
@pytest.mark.parametrize("kind", ["fp8", "fp8-blocks"])
def test_batch_invariance(kind: str, device: str) -> None:
    """INT8 sums are exact, so only FP8 has an order to keep."""
    w, x = weight(100, 640, kind), activations(70, 640, torch.bfloat16, 3)
    options: dict[str, Any] = {"device": getattr(emulated, device), "batch_invariant": True, "promote": True}
    whole, _ = emulated_w8a8.linear(x, w, **options)
    for rows in (slice(0, 1), slice(3, 15), slice(20, 50)):
        part, _ = emulated_w8a8.linear(x[rows].contiguous(), w, **options)
        assert torch.equal(part, whole[rows])


def test_codes_past_k_and_rows_past_m_are_not_read() -> None:
    """The emulator refuses any access outside; NaN beside the rows must not show either."""
    store = torch.full((5, 192), torch.nan, dtype=torch.float16)
    for k in (96, 101):
        store[:, :k] = activations(5, k, torch.float16, k)
        for kind in ("int8", "fp8"):
            w = weight(48, k, kind)
            for fused in (False, True):
                y, _ = emulated_w8a8.linear(store[:, :k], w, fused=fused)
                check(y, activation.quantize(store[:, :k], w.kind), w, None)


def test_largest_sums_do_not_overflow() -> None:
    k = 4096
    codes = torch.full((16, k), 0, dtype=torch.uint8)  # -128 each
    w = make_weight(CanonicalWeight(codes, torch.ones(16, 1), 8, k))
    x = torch.full((2, k), 1.0, dtype=torch.bfloat16)
    x[1] = -1
    for symmetric in (True, False):
        y, _ = emulated_w8a8.linear(x, w, symmetric=symmetric)
        check(y, activation.quantize(x, INT8, symmetric), w, None)


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_finishing_sums_of_another_library(kind: str) -> None:
    w, x = weight(51, 96, kind), activations(20, 96, torch.bfloat16, 4)
    bias = torch.randn(51)
    a = activation.quantize(x, w.kind, symmetric=kind == "fp8")
    sums = a.q.double() @ w.codes.double().T
    sums = sums.to(torch.int32 if kind == "int8" else torch.float32)
    out = torch.full((20, 51), torch.nan, dtype=x.dtype)
    call = w8a8_native.describe(a, out, w, bias, False, False)
    emulated._begin([sums, out, w.scales, w.sums, a.scales, a.zeros, bias], 0, True)
    emulated.library().vqp_emulator_w8a8_finish(ctypes.byref(call), ctypes.c_void_p(sums.data_ptr()))
    emulated._end()
    check(out, a, w, bias)


def test_int8_is_the_cpu_kernels_product() -> None:
    """Static scales quantize alike on both devices: one reference for CPU and GPU, bit for bit."""
    w, x = weight(40, 200, "int8"), activations(7, 200, torch.bfloat16, 5)
    in_scale, in_zero = torch.tensor([0.043]), None
    y, _ = emulated_w8a8.linear(x, w, in_scale=in_scale)
    expected = reference.w8a8_linear(x, w.codes[:, :200], w.scales, None, in_scale, in_zero)
    assert torch.equal(y, expected.to(x.dtype))


@pytest.mark.parametrize("gpu", ["H200", "A100", "ADA"])
@pytest.mark.parametrize("kind", ["int8", "fp8", "fp8-blocks"])
def test_every_plan_fits_and_covers(kind: str, gpu: str) -> None:
    device = getattr(emulated, gpu)
    for n, k in ((4096, 4096), (28672, 8192), (8192, 28672), (640, 2048)):
        scales = torch.ones(-(-n // 128), -(-k // 128)) if kind == "fp8-blocks" else torch.ones(n)
        codes = torch.empty(0, dtype=torch.int8)
        w = WeightW8A8(codes, scales, torch.ones(1, dtype=torch.int32), FP8 if kind != "int8" else INT8, n, k)
        for m in (1, 8, 16, 17, 64, 65, 300, 8192):
            out = torch.empty(m, n, dtype=torch.bfloat16, device="meta")
            rows = -(-m // 4) * 4
            a = Activations(
                torch.empty(m, k, device="meta"), scales.new_ones(1, rows) if w.blocks else torch.ones(m), None
            )
            for promote in (False, True):
                plan = emulated_w8a8.make_plan(w8a8_native.describe(a, out, w, None, promote, False), device)
                assert plan.shared_bytes <= device.smem_per_cta
                assert plan.m_tiles * plan.tokens >= m
                assert plan.n_tiles * 128 >= n
                assert 1 <= plan.splits <= 8
            if m <= 16 and kind != "fp8-blocks":
                x = torch.empty(m, k, dtype=torch.bfloat16, device="meta")
                call = w8a8_native.describe_fused(x, out, w, None, True, None, None)
                assert emulated_w8a8.make_plan(call, device).shared_bytes <= device.smem_per_cta


def test_fp8_without_its_tensor_cores_has_no_plan() -> None:
    w, x = weight(16, 64, "fp8"), activations(2, 64, torch.bfloat16, 0)
    call = w8a8_native.describe_fused(x, torch.empty(2, 16, dtype=x.dtype), w, None, True, None, None)
    with pytest.raises(ValueError, match="compute capability"):
        emulated_w8a8.make_plan(call, emulated.A100, fp8=False)


def test_weights_that_no_product_takes() -> None:
    assert serves(random_weight(32, 64, 8, None))
    assert not serves(random_weight(32, 64, 8, 32))
    assert not serves(random_weight(32, 64, 4, None))
    assert not serves(random_weight(32, 64, 8, None, "integer"))
    assert not serves(random_weight(32, 64, 8, None, kind="fp8_e5m2"))
    assert not serves(random_weight(32, 256, 8, 128, kind="fp8_e4m3")), "a scale a channel and group is no block"
    with pytest.raises(ValueError, match="8-bit products need"):
        make_weight(random_weight(32, 64, 4, None))
    bad = random_weight(16, 32, 8, None, kind="fp8_e4m3")
    bad.codes[3, 5] = 0x7F
    with pytest.raises(ValueError, match="NaN"):
        make_weight(bad)


@pytest.mark.parametrize("kind", ["int8", "fp8", "fp8-blocks"])
def test_a_weight_keeps_its_values(kind: str) -> None:
    canonical = random_weight(130, 200, 8, None, kind="int" if kind == "int8" else "fp8_e4m3", seed=3)
    if kind == "fp8-blocks":
        scales = torch.rand(2, 2).repeat_interleave(128, 0)[:130].contiguous()
        canonical = CanonicalWeight(canonical.codes, scales, 8, 128, None, "fp8_e4m3")
    w = make_weight(canonical)
    assert w.blocks == (kind == "fp8-blocks")
    assert torch.equal(dequantize_weight(w), canonical.dequantize(torch.float32))


def test_the_choice_is_the_table_where_shapes_allow() -> None:
    table: Table = {"int8": ((4, ("fused",)), (64, ("own",)), (None, ("cublaslt",)))}
    assert [choose("int8", m, 64, 64, table=table) for m in (1, 4, 5, 64, 65)] == [
        "fused", "fused", "own", "own", "cublaslt",
    ]  # fmt: skip
    assert choose("int8", 65, 72, 64, table=table) == "own", "cuBLASLt wants multiples of 16"
    assert choose("int8", 65, 64, 64, batch_invariant=True, table=table) == "own"
    assert choose("int8", 2, 64, 64, table={"int8": ((None, ("cublaslt",)),)}) == "own"
    assert choose("fp8", 2, 64, 64, batch_invariant=True) == "own"
    for rows in TABLE.values():
        assert rows[-1][0] is None


def test_the_first_that_is_available_and_fits_is_taken() -> None:
    table: Table = {
        "fp8": ((None, ("rowwise", "wgmma", "cublaslt")),),
        "fp8-blocks": ((None, ("rowwise", "cublaslt", "wgmma")),),
    }

    def taken(kind: str, available: set[str], n: int = 256, k: int = 512, **options: bool) -> str:
        return choose(kind, 100, n, k, available=available | {"own"}, table=table, **options)

    everything = {"rowwise", "wgmma", "cublaslt"}
    assert taken("fp8", everything) == "rowwise"
    assert taken("fp8", everything, bf16=False) == "wgmma", "torch's row scales give BF16 only"
    assert taken("fp8", everything, n=250) == "wgmma", "torch wants multiples of 16"
    assert taken("fp8", {"cublaslt"}) == "cublaslt"
    assert taken("fp8", everything, batch_invariant=True) == "own"
    assert taken("fp8-blocks", everything) == "wgmma", "torch's GEMMs take no block scales"
    assert taken("fp8-blocks", set()) == "own"
    assert choose("int8", 300, 64, 64, batch_invariant=True) == "wgmma", "INT8 sums are exact"


@pytest.mark.parametrize("kind", ["int8", "fp8", "fp8-blocks"])
def test_the_operator_computes_the_reference_and_its_fake_has_its_shape(kind: str) -> None:
    w = weight(40, 130, kind)
    for shape in ((130,), (5, 130), (2, 3, 130), (0, 130)):
        x = torch.randn(shape).to(torch.bfloat16)
        real = linear_w8a8(x, w)
        if x.numel():
            rows = x.view(-1, 130)
            a = activation.quantize(rows, w.kind, group=128 if w.blocks else 0)
            check(real.view(-1, 40), a, w, None)
        with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fake = linear_w8a8(mode.from_tensor(x), w)
        assert (fake.shape, fake.dtype) == (real.shape, real.dtype)


def test_the_operator_refuses_tensors_that_do_not_fit() -> None:
    w, x = weight(40, 96, "int8"), torch.randn(2, 96, dtype=torch.float16)
    for change, message in (
        ({"scales": w.scales[:3]}, "scales must be"),
        ({"codes": w.codes[:, :80].contiguous()}, "codes must be"),
        ({"sums": None}, "sums"),
    ):
        with pytest.raises(ValueError, match=message):
            linear_w8a8(x, dataclasses.replace(w, **change))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="bf16 or fp16"):
        linear_w8a8(x.float(), w)
    with pytest.raises(ValueError, match="must be"):
        linear_w8a8(x[:, :64], w)
    with pytest.raises(ValueError, match="bias"):
        linear_w8a8(x, w, torch.zeros(39))
