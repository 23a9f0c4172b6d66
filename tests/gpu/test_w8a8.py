"""The 8-bit products on a GPU: INT8 bit for bit, FP8 against fp64. Needs torch and pytest only."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from gpu_cases import EPSILON, activations, random_weight

from vllm_quant_kernels.canonical import CanonicalWeight
from vllm_quant_kernels.cuda.w8a8 import activation
from vllm_quant_kernels.cuda.w8a8 import native as w8a8_native
from vllm_quant_kernels.cuda.w8a8 import torch_gemm as w8a8_torch
from vllm_quant_kernels.cuda.w8a8.activation import INT8
from vllm_quant_kernels.cuda.w8a8.choice import BACKENDS, fits
from vllm_quant_kernels.cuda.w8a8.ops import linear_w8a8
from vllm_quant_kernels.cuda.w8a8.weight import WeightW8A8, dequantize_weight, make_weight, product

FP8_CORES = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9)
HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
KINDS = ["int8", "fp8", "fp8-blocks"] if FP8_CORES else ["int8"]


def weight(n: int, k: int, kind: str, seed: int = 0) -> WeightW8A8:
    if kind == "int8":
        return make_weight(random_weight(n, k, "8", None, scale_dtype=torch.float32, seed=seed))
    canonical = random_weight(n, k, "fp8_e4m3", None if kind == "fp8" else 128, seed=seed)
    if kind == "fp8-blocks":
        blocks = canonical.scales[::128].repeat_interleave(128, dim=0)[:n].contiguous()
        canonical = CanonicalWeight(canonical.codes, blocks, 8, 128, None, "fp8_e4m3")
    return make_weight(canonical)


def check(
    y: torch.Tensor,
    x: torch.Tensor,
    w: WeightW8A8,
    bias: torch.Tensor | None,
    kept: float = 2.0**-13,
    **options: Any,
) -> None:
    """Codes are those of the CPU (test_quantize.py). FP8: sums of a tensor core keep at least 13 bits of the largest
    term when they are taken over every 128 columns (`kept`)."""
    a = activation.quantize(x, w.kind, group=128 if w.blocks else 0, **options)
    expected = product(a, w, bias)
    assert bool(torch.isfinite(y).all()), "an output was not written"
    if w.kind == INT8:
        assert torch.equal(y, expected.to(y.dtype))
        return
    size = activation.dequantize(a, w.k).abs() @ dequantize_weight(w, torch.float64).abs().T
    allowed = 1.01 * EPSILON[y.dtype] * expected.abs() + kept * size
    assert bool(((y.double() - expected.double()).abs() <= allowed).all())
    assert float((y.double() - expected.double()).norm() / expected.double().norm()) < 16 * kept + EPSILON[y.dtype]


def random_case(number: int) -> dict[str, Any]:
    pick = random.Random(number)
    return {
        "m": pick.choice([1, 2, 5, 8, 13, 16, 24, 33, 64, 65, 100, 129, 257, 1000]),
        "n": pick.choice([16, 40, 99, 128, 200, 1024, 1280, 4096, 3584]),
        "k": pick.choice([64, 100, 128, 256, 777, 1024, 2048, 4096, 3584]),
        "kind": pick.choice(KINDS),
        "dtype": pick.choice([torch.float16, torch.bfloat16]),
        "bias": pick.choice([None, torch.float32, torch.bfloat16, torch.float16]),
        "scheme": pick.choice(["symmetric", "asymmetric", "static", "static-zero"]),
        "batch_invariant": pick.random() < 0.3,
    }


def scheme_options(scheme: str, kind: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if kind == "int8" and scheme == "asymmetric":
        options["symmetric"] = False
    if kind != "fp8-blocks" and scheme.startswith("static"):
        options["in_scale"] = torch.tensor([0.031], device="cuda")
    if kind == "int8" and scheme == "static-zero":
        options["in_zero"] = torch.tensor([21], dtype=torch.int32, device="cuda")
    return options


@pytest.mark.parametrize("number", range(150))
def test_random_problems(number: int) -> None:
    case = random_case(number)
    w = weight(case["n"], case["k"], case["kind"], number)
    x = activations(case["m"], case["k"], case["dtype"], number)
    bias = None if case["bias"] is None else activations(1, case["n"], torch.float16, number)[0].to(case["bias"])
    options = scheme_options(case["scheme"], case["kind"])
    torch.full((64 << 20,), torch.nan, device="cuda")  # freed memory holds NaN: what nobody writes shows
    y = linear_w8a8(x, w, bias, batch_invariant=case["batch_invariant"], **options)
    check(y, x, w, bias, **options)
    again = linear_w8a8(x, w, bias, batch_invariant=case["batch_invariant"], **options)
    assert torch.equal(again, y), "a repeated call differs"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("m", [8, 16, 17, 64, 200])
def test_every_backend_computes_the_same(kind: str, m: int) -> None:
    w, x = weight(1024, 2048, kind), activations(m, 2048, torch.bfloat16)
    device = x.device
    here = w8a8_torch.available(device, BACKENDS) | {"fused", "own"}
    here |= {"wgmma"} if w8a8_native.serves_wgmma(device) else set()
    for backend in sorted(here):
        if fits(backend, kind, m, w.n, w.k, False, True):
            check(w8a8_native.linear(x, w, backend=backend), x, w, None)


def wide_case(number: int) -> dict[str, Any]:
    pick = random.Random(number)
    return {
        "m": pick.choice([1, 64, 65, 128, 129, 257, 700, 1000, 2049, 4100]),
        "n": pick.choice([16, 99, 128, 136, 200, 1024, 1280, 3584, 4096]),
        "k": pick.choice([16, 100, 128, 777, 1024, 2048, 3584]),
        "kind": pick.choice(KINDS),
        "dtype": pick.choice([torch.float16, torch.bfloat16]),
        "bias": pick.choice([None, torch.float32, torch.bfloat16, torch.float16]),
        "scheme": pick.choice(["symmetric", "asymmetric", "static", "static-zero"]),
        "promote": pick.random() < 0.6,
    }


@pytest.mark.skipif(not HOPPER, reason="wgmma is Hopper's")
@pytest.mark.parametrize("number", range(120))
def test_random_problems_for_large_m(number: int) -> None:
    case = wide_case(number)
    assert w8a8_native.serves_wgmma(torch.device("cuda", 0)), "the library has no code for sm_90a"
    w = weight(case["n"], case["k"], case["kind"], number)
    x = activations(case["m"], case["k"], case["dtype"], number)
    bias = None if case["bias"] is None else activations(1, case["n"], torch.float16, number)[0].to(case["bias"])
    options = scheme_options(case["scheme"], case["kind"])
    promote = case["promote"] or case["kind"] == "fp8-blocks"
    torch.full((64 << 20,), torch.nan, device="cuda")
    for _ in range(2):
        y = w8a8_native.linear(x, w, bias, promote=promote, backend="wgmma", **options)
        # Sums that stay in the tensor cores lose bits to the largest of all columns.
        check(y, x, w, bias, **options, **({} if promote else {"kept": 2.0**-10}))


@pytest.mark.skipif(not HOPPER, reason="wgmma is Hopper's")
def test_one_code_of_x_reads_each_weight_exactly() -> None:
    """Swizzle, descriptors and tensor maps, without any sum: row r of y is column r of W."""
    for kind in KINDS:
        w = weight(1000, 640, kind)
        x = torch.eye(640, dtype=torch.bfloat16, device="cuda")
        y = w8a8_native.linear(x, w, backend="wgmma")
        check(y, x, w, None, kept=0.0)


@pytest.mark.skipif(not HOPPER, reason="wgmma is Hopper's")
@pytest.mark.parametrize("kind", KINDS)
def test_large_products_repeat(kind: str) -> None:
    """Races of a ring that wraps many times show as differences."""
    w, x = weight(4096, 8192, kind), activations(3000, 8192, torch.bfloat16)
    first = w8a8_native.linear(x, w, backend="wgmma")
    for _ in range(20):
        assert torch.equal(w8a8_native.linear(x, w, backend="wgmma"), first)
    if kind == "int8":
        assert torch.equal(w8a8_native.linear(x, w, backend="own"), first)


@pytest.mark.parametrize("kind", KINDS)
def test_batch_invariance(kind: str) -> None:
    w, x = weight(1024, 4096, kind), activations(300, 4096, torch.bfloat16)
    whole = linear_w8a8(x, w, batch_invariant=True)
    for rows in (slice(0, 1), slice(5, 12), slice(40, 56), slice(100, 130), slice(200, 264)):
        assert torch.equal(linear_w8a8(x[rows], w, batch_invariant=True), whole[rows])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("m", [1, 64, 256])
def test_graph_replay(kind: str, m: int) -> None:
    w, x = weight(1024, 4096, kind), activations(m, 4096, torch.bfloat16)
    linear_w8a8(x, w)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = linear_w8a8(x, w)
    for seed in range(3):
        x.copy_(activations(m, 4096, torch.bfloat16, seed))
        y.fill_(torch.nan)
        graph.replay()
        check(y, x, w, None)


def test_fakes_agree_with_the_kernels() -> None:
    w, x = weight(96, 256, "int8"), activations(3, 256, torch.bfloat16)
    arguments = (x, w.codes, w.scales, w.sums, None, None, None, True, True, False, w.n, w.k)
    torch.library.opcheck(torch.ops.vqp.w8a8_linear_cuda, arguments)
