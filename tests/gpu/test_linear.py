"""The weight-only kernels on a GPU, against fp64 on the dequantized weight. Needs torch and pytest only."""

from __future__ import annotations

import pytest
import torch
from gpu_cases import KINDS, activations, check, random_case, random_weight

from vllm_quant_kernels.canonical import CanonicalWeight
from vllm_quant_kernels.cuda import native as cuda_native
from vllm_quant_kernels.cuda.layout import pack_codes
from vllm_quant_kernels.cuda.ops import linear_cuda
from vllm_quant_kernels.cuda.pack import dequantize_cuda, pack_cuda
from vllm_quant_kernels.cuda.verify.weight_only import chained, empty_results

DTYPES = [torch.float16, torch.bfloat16]


def poison() -> None:
    """Fill freed memory with NaN, so that an output nobody writes shows."""
    torch.full((64 << 20,), torch.nan, device="cuda")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [8, 16, 32, 64, 128])
def test_one_hot_activations_read_each_weight_exactly(kind: str, dtype: torch.dtype, tokens: int) -> None:
    zeros = "integer" if kind.isdigit() else "none"
    w = random_weight(200, 328, kind, 32, zeros, scale_dtype=dtype, seed=tokens)
    packed, expected = pack_cuda(w), w.dequantize(torch.float32).T.to(dtype)
    for start in range(0, 328, tokens):
        poison()
        y = linear_cuda(torch.eye(328, dtype=dtype, device="cuda")[start : start + tokens], packed)
        assert torch.equal(y, expected[start : start + tokens])


@pytest.mark.parametrize("number", range(250))
def test_random_problems(number: int) -> None:
    case = random_case(number)
    w = random_weight(
        case["n"],
        case["k"],
        case["kind"],
        case["group_size"],
        case["zeros"],
        case["order"],
        case["scale_dtype"],
        number,
    )
    x = activations(case["m"], w.in_features, case["dtype"], number)
    bias = None if case["bias"] is None else activations(1, case["n"], torch.float16, number)[0].to(case["bias"])
    packed = pack_cuda(w)
    poison()
    y = linear_cuda(x, packed, bias, case["batch_invariant"])
    check(y, x, w, bias)
    assert torch.equal(linear_cuda(x, packed, bias, case["batch_invariant"]), y), "a repeated call differs"


@pytest.mark.parametrize("kind", KINDS)
def test_the_device_packs_as_pytorch_does(kind: str) -> None:
    w = random_weight(208, 512, kind, 64)
    assert torch.equal(pack_cuda(w).data.cpu(), pack_codes(w.codes.cpu(), w.bits))
    shuffled = random_weight(72, 500, kind, 32, order="shuffled", seed=1)
    on_cpu = CanonicalWeight(
        shuffled.codes.cpu(), shuffled.scales.cpu(), shuffled.bits, 32, None, shuffled.kind,
        None if shuffled.g_idx is None else shuffled.g_idx.cpu(),
    )  # fmt: skip
    device, host = pack_cuda(shuffled), pack_cuda(on_cpu)
    assert torch.equal(device.data.cpu(), host.data)
    assert torch.equal(device.scales.cpu(), host.scales)
    assert torch.equal(dequantize_cuda(device, torch.float64), shuffled.dequantize(torch.float64))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("tokens", "group_size"), [(128, 32), (128, 64), (128, 128), (128, 256), (128, None), (256, None)]
)
def test_warpgroup_products(kind: str, group_size: int | None, tokens: int, dtype: torch.dtype) -> None:
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("wgmma is Hopper's")
    if tokens == 256 and kind in ("6", "7", "8", "fp8_e4m3"):
        pytest.skip("three stages of this weight do not fit")
    w = random_weight(1000, 2000, kind, group_size, "integer" if kind.isdigit() else "none", seed=tokens)
    packed = pack_cuda(w)
    for m in (70, 300):
        x = activations(m, 2000, dtype, m)
        results = []
        for splits in (1, 3, 3):
            out = torch.full((m, 1000), torch.nan, dtype=dtype, device="cuda")
            call = cuda_native.describe(x, out, packed, None, False)
            plan = cuda_native.plan(call, tokens)
            assert plan.tokens == tokens
            plan.splits, plan.clustered, plan.workspace_bytes = splits, int(splits > 1), 0
            cuda_native.run(call, plan, x.device)
            check(out, x, w)
            results.append(out)
        assert torch.equal(results[1], results[2])


def test_large_batches_take_warpgroups_on_hopper() -> None:
    packed, x = pack_cuda(random_weight(4096, 4096, "4", 128)), activations(2048, 4096, torch.bfloat16)
    plan = cuda_native.plan(cuda_native.describe(x, x, packed, None, False))
    assert plan.tokens == (128 if torch.cuda.get_device_capability()[0] == 9 else 64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "k"), [(1024, 4096), (4096, 14336), (130, 2048)])
def test_batch_invariance(dtype: torch.dtype, n: int, k: int) -> None:
    packed = pack_cuda(random_weight(n, k, "4", 128, "integer"))
    x = activations(300, k, dtype)
    whole = linear_cuda(x, packed, batch_invariant=True)
    for rows in (slice(0, 1), slice(5, 12), slice(40, 56), slice(100, 130), slice(200, 264)):
        assert torch.equal(linear_cuda(x[rows], packed, batch_invariant=True), whole[rows])


@pytest.mark.parametrize("m", [1, 8, 17, 64])
def test_splits_through_clusters_and_through_a_second_pass_give_the_same_bits(m: int) -> None:
    w = random_weight(520, 4096, "4", 128, "integer")
    packed, x = pack_cuda(w), activations(m, 4096, torch.bfloat16)
    results = []
    for clustered in (0, 1):
        out = torch.full((m, 520), torch.nan, dtype=x.dtype, device="cuda")
        call = cuda_native.describe(x, out, packed, None, False)
        plan = cuda_native.plan(call)
        if clustered and torch.cuda.get_device_capability()[0] != 9:
            continue
        plan.splits, plan.clustered = 4, clustered
        plan.workspace_bytes = 0 if clustered else 4 * plan.m_tiles * plan.tokens * 520 * 4
        cuda_native.run(call, plan, x.device)
        check(out, x, w)
        results.append(out)
    assert all(torch.equal(result, results[0]) for result in results)


def test_graph_replay() -> None:
    w = random_weight(4096, 4096, "4", 128, "integer")
    packed, x = pack_cuda(w), activations(4, 4096, torch.float16)
    linear_cuda(x, packed)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = linear_cuda(x, packed)
    for seed in range(3):
        x.copy_(activations(4, 4096, torch.float16, seed))
        y.fill_(torch.nan)
        graph.replay()
        check(y, x, w)


def test_a_chain_of_dependent_launches_waits_for_each() -> None:
    """Each call reads what the one ahead wrote, with nothing between them; without dependent launch the bits agree."""
    n = 2048
    weights = [pack_cuda(random_weight(n, n, "4", 128, seed=i)) for i in range(8)]
    x = activations(4, n, torch.bfloat16)

    def chain(dependent: int) -> list[torch.Tensor]:
        results = empty_results(weights, x)
        torch.cuda.synchronize()
        return chained(weights, x, results, dependent=dependent)

    expected = chain(0)
    assert all(bool(torch.isfinite(out).all()) for out in expected)
    for _ in range(20):
        assert all(torch.equal(a, b) for a, b in zip(chain(1), expected, strict=True))


def test_concurrent_streams() -> None:
    """Nothing is shared between calls: two streams at once give what each gives alone."""
    weights = [random_weight(1024, 4096, "4", 128, seed=i) for i in range(2)]
    packed, x = [pack_cuda(w) for w in weights], activations(8, 4096, torch.float16)
    expected = [linear_cuda(x, p) for p in packed]
    streams = [torch.cuda.Stream() for _ in packed]
    torch.cuda.synchronize()
    results: list[list[torch.Tensor]] = [[], []]
    for _ in range(50):
        for i, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                results[i].append(linear_cuda(x, packed[i]))
    torch.cuda.synchronize()
    for i, found in enumerate(results):
        assert all(torch.equal(y, expected[i]) for y in found)


def test_activations_past_k_are_not_read() -> None:
    for k in (1000, 1001):
        w = random_weight(256, k, "4", None)
        store = torch.full((5, 2048), torch.nan, dtype=torch.float16, device="cuda")
        store[:, :k] = activations(5, k, torch.float16)
        check(linear_cuda(store[:, :k], pack_cuda(w)), store[:, :k], w)


def test_fakes_agree_with_the_kernels() -> None:
    packed, x = pack_cuda(random_weight(96, 256, "4", 64)), activations(3, 256, torch.bfloat16)
    arguments = (
        x,
        packed.data,
        packed.scales,
        None,
        None,
        None,
        packed.kind,
        packed.group_size,
        packed.n,
        packed.k,
        False,
    )
    torch.library.opcheck(torch.ops.vqp.wna16_linear_cuda, arguments)
