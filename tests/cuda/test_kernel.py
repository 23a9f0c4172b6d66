"""The CUDA kernels, thread by thread on the CPU, against the fp64 reference.

The emulator runs the kernels' source with the maps of the real instructions; it refuses accesses out of
bounds, races between warps and reads of memory nothing wrote (tests/cuda/emulator/emulator.h).
"""

from __future__ import annotations

import random

import pytest
import torch

from tests.cuda import emulated
from tests.kernels.weights import random_weight
from vllm_quant_kernels.canonical import CanonicalWeight
from vllm_quant_kernels.cuda.ops import experts_cuda
from vllm_quant_kernels.cuda.pack import pack_cuda
from vllm_quant_kernels.cuda.stack import stack_cuda

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
EPSILON = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def activations(m: int, k: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    return torch.randn(m, k, generator=torch.Generator().manual_seed(seed)).to(dtype)


def check(y: torch.Tensor, x: torch.Tensor, w: CanonicalWeight, bias: torch.Tensor | None = None) -> None:
    """Rounding of the output, and FP32 sums: eps |y| + 2^-22 sum |x| (|code| + |zero|) scale."""
    exact = x.double() @ w.dequantize(torch.float64).T
    if w.kind == "int":
        middle = 1 << (w.bits - 1)
        zero = torch.full_like(w.scales, middle).double() if w.zeros is None else w.zeros.double()
        size = (w.codes.double() + zero[:, w.group_index()]) * w.scales.double()[:, w.group_index()]
    else:
        size = w.dequantize(torch.float64).abs()
    allowed = EPSILON[y.dtype] * exact.abs() + 2.0**-22 * (x.double().abs() @ size.T)
    if bias is not None:
        exact = exact + bias.double()
        allowed = allowed + EPSILON[y.dtype] * bias.double().abs()
    assert torch.isfinite(y).all(), "an output was not written"
    assert ((y.double() - exact).abs() <= allowed + 1e-30).all()


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("kind", ["2", "3", "4", "5", "6", "7", "8", "fp8_e4m3"])
def test_one_hot_activations_read_each_weight_exactly(kind: str, dtype: torch.dtype) -> None:
    """Through packing, copies, ldmatrix, dequantization, mma, scales and the output: bit for bit."""
    bits = int(kind) if kind.isdigit() else 8
    weight_kind = "int" if kind.isdigit() else kind
    w = random_weight(
        40, 150, bits, 32, "integer" if kind.isdigit() else "none", weight_kind, scale_dtype=dtype, seed=bits
    )
    y = emulated.linear(torch.eye(150, dtype=dtype)[:64], pack_cuda(w))
    assert torch.equal(y, w.dequantize(torch.float32).T[:64].to(dtype))
    y = emulated.linear(torch.eye(150, dtype=dtype)[64:], pack_cuda(w), tokens=32)
    assert torch.equal(y, w.dequantize(torch.float32).T[64:].to(dtype))


def random_case(number: int) -> dict:  # type: ignore[type-arg]
    pick = random.Random(number)
    kind = pick.choice(["int"] * 6 + ["fp8_e4m3"])
    return {
        "m": pick.choice([1, 3, 8, 9, 16, 17, 31, 40]),
        "n": pick.choice([1, 16, 24, 100, 128, 130]),
        "k": pick.choice([16, 60, 64, 100, 128, 264, 384, 513]),
        "bits": pick.randint(2, 8) if kind == "int" else 8,
        "kind": kind,
        "group_size": pick.choice([None, 16, 32, 64, 128, 256, 8, 24, 96]),
        "zeros": pick.choice(["none", "integer", "wide", "floating"]) if kind == "int" else "none",
        "order": pick.choice(["none", "none", "shuffled", "shard"]),
        "scale_dtype": pick.choice([torch.float32, torch.float16, torch.bfloat16]),
        "dtype": pick.choice(list(DTYPES.values())),
        "bias": pick.choice([None, torch.float32, torch.bfloat16, torch.float16]),
        "device": pick.choice(["ONE_BLOCK", "SPLITTING", "CLUSTERED"]),
        "splits": pick.choice([0, 0, 2, 3]),
        "late_copies": pick.random() < 0.5,
    }


@pytest.mark.parametrize("number", range(64))
def test_random_problems_match_the_reference(number: int) -> None:
    case = random_case(number)
    w = random_weight(
        case["n"], case["k"], case["bits"], case["group_size"], case["zeros"], case["kind"], case["order"],
        case["scale_dtype"], seed=number,
    )  # fmt: skip
    x = activations(case["m"], w.in_features, case["dtype"], number)
    bias = None if case["bias"] is None else torch.randn(w.out_features).to(case["bias"])
    packed = pack_cuda(w)
    splits = min(case["splits"], -(-packed.k_padded // 128))
    y = emulated.linear(
        x, packed, bias, getattr(emulated, case["device"]), splits=splits, seed=number, late_copies=case["late_copies"]
    )
    check(y, x, w, bias)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_long_k_wraps_the_ring(bits: int) -> None:
    """Many more K tiles than stages, in an order of warps and copies that shows a missing barrier."""
    w = random_weight(128, 1600, bits, 64, "integer", seed=bits)
    x = activations(4, 1600, torch.float16, bits)
    results = [
        emulated.linear(x, pack_cuda(w), device=emulated.ADA, splits=1, seed=seed, late_copies=late)
        for seed, late in ((1, True), (2, False))
    ]
    check(results[0], x, w)
    assert torch.equal(results[0], results[1]), "the order of warps shows in the result"


def test_both_ways_of_splitting_k_give_the_same_bits() -> None:
    w = random_weight(130, 700, 4, 64, "integer", seed=5)
    x = activations(9, 700, torch.bfloat16, 5)
    passes = emulated.linear(x, pack_cuda(w), device=emulated.SPLITTING, splits=3)
    cluster = emulated.linear(x, pack_cuda(w), device=emulated.CLUSTERED, splits=3)
    check(passes, x, w)
    assert torch.equal(passes, cluster)


@pytest.mark.parametrize("m", [3, 16, 30, 40])
def test_a_dependent_launch_reads_activations_after_the_wait_and_gives_the_same_bits(m: int) -> None:
    """The emulator refuses any other access before it. Plain, gathered and misaligned activations; many K tiles."""
    for order, k in (("none", 640), ("shuffled", 384), ("none", 261)):
        w = random_weight(40, k, 4, 32 if order == "shuffled" else None, order=order, seed=k)
        x, packed = activations(m, k, torch.float16, m), pack_cuda(w)
        early, late = (
            emulated.linear(x, packed, device=emulated.CLUSTERED, dependent=d, seed=m) for d in (True, False)
        )
        check(early, x, w)
        assert torch.equal(early, late)


WIDE = [
    # kind, group, zeros, order, tokens, m, k, n, splits
    ("4", 128, "none", "none", 128, 130, 640, 130, 1),
    ("4", 64, "integer", "none", 128, 70, 300, 100, 2),
    ("3", 32, "integer", "shuffled", 128, 128, 384, 40, 1),
    ("7", 256, "wide", "none", 128, 90, 1100, 136, 3),
    ("8", None, "integer", "shard", 128, 20, 261, 128, 1),
    ("fp8_e4m3", 128, "none", "none", 128, 66, 513, 16, 1),
    ("2", None, "none", "none", 256, 257, 384, 130, 1),
    ("4", None, "integer", "none", 256, 90, 900, 64, 2),
    ("5", None, "none", "none", 256, 33, 128, 24, 1),
]


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize(("kind", "group_size", "zeros", "order", "tokens", "m", "k", "n", "splits"), WIDE)
def test_warpgroup_products_match_the_reference(
    kind: str, group_size: int | None, zeros: str, order: str, tokens: int, m: int, k: int, n: int, splits: int,
    dtype: torch.dtype,
) -> None:  # fmt: skip
    """The prefill kernels of sm_90a, with wgmmas that complete late and at once, in two orders of the warps."""
    bits, weight_kind = (int(kind), "int") if kind.isdigit() else (8, kind)
    w = random_weight(n, k, bits, group_size, zeros, weight_kind, order, torch.float16, seed=k)
    x, packed = activations(m, w.in_features, dtype, m), pack_cuda(w)
    late, early = (
        emulated.linear(x, packed, None, emulated.HOPPER, tokens, splits, seed=seed, late_copies=seed == 1)
        for seed in (1, 2)
    )
    check(late, x, w)
    assert torch.equal(late, early)


def test_warpgroup_products_of_one_hot_activations_read_each_weight_exactly() -> None:
    for dtype in DTYPES.values():
        for kind, tokens in ((6, 128), (4, 256)):
            w = random_weight(40, 150, kind, 32 if tokens == 128 else None, "integer", scale_dtype=dtype, seed=kind)
            y = emulated.linear(torch.eye(150, dtype=dtype), pack_cuda(w), device=emulated.HOPPER, tokens=tokens)
            assert torch.equal(y, w.dequantize(torch.float32).T.to(dtype))


@pytest.mark.parametrize("device", ["SPLITTING", "CLUSTERED"])
def test_batch_invariance(device: str) -> None:
    w = random_weight(100, 512, 4, 128, seed=6)
    x = activations(40, 512, torch.float16, 6)
    gpu, packed = getattr(emulated, device), pack_cuda(w)
    whole = emulated.linear(x, packed, device=gpu, batch_invariant=True)
    for rows in (slice(0, 1), slice(3, 12), slice(20, 37)):
        part = emulated.linear(x[rows].contiguous(), packed, device=gpu, batch_invariant=True)
        assert torch.equal(part, whole[rows])


def test_batch_invariance_up_to_512_rows() -> None:
    """From decode to prefill: every tile of M that a batch of 1 to 512 chooses sums a row alike."""
    w = random_weight(40, 256, 4, 64, "integer", seed=6)
    x = activations(512, 256, torch.float16, 6)
    packed = pack_cuda(w)
    whole = emulated.linear(x, packed, device=emulated.CLUSTERED, batch_invariant=True)
    for rows in (slice(0, 1), slice(100, 117), slice(200, 264), slice(3, 203), slice(1, 512)):
        part = emulated.linear(x[rows].contiguous(), packed, device=emulated.CLUSTERED, batch_invariant=True)
        assert torch.equal(part, whole[rows])


def test_activations_past_k_and_beside_the_rows_are_not_read() -> None:
    """Rows of x that lie apart, with NaN between them, and a K that is no multiple of 8."""
    for k in (96, 101):
        w = random_weight(48, k, 4, None, seed=k)
        store = torch.full((5, 192), torch.nan, dtype=torch.float16)
        store[:, :k] = activations(5, k, torch.float16, k)
        check(emulated.linear(store[:, :k], pack_cuda(w)), store[:, :k], w)


def test_experts_match_the_reference() -> None:
    experts, tokens, top_k = 3, 8, 2
    weights = [random_weight(72, 160, 4, 32, "integer", seed=e) for e in range(experts)]
    packed = stack_cuda([pack_cuda(w) for w in weights])
    x = activations(7, 160, torch.bfloat16, 1)
    chosen = torch.tensor([[0, 2], [1, 2], [2, 0], [2, 1], [0, 1], [2, 0], [2, 0]])
    pairs = chosen.numel()
    rows, tiles = [], []
    for e in range(experts):
        mine = (chosen.flatten() == e).nonzero().flatten().tolist()
        mine += [pairs] * (-len(mine) % tokens)
        rows += mine
        tiles += [e] * (len(mine) // tokens)
    used = torch.tensor([len(rows)], dtype=torch.int32)
    sorted_rows = torch.tensor(rows + [pairs] * tokens, dtype=torch.int32)
    tile_experts = torch.tensor([*tiles, 0], dtype=torch.int32)
    expected = torch.stack(
        [x[i // top_k].double() @ weights[e].dequantize(torch.float64).T for i, e in enumerate(chosen.flatten())]
    )
    reference = experts_cuda(x, packed, sorted_rows, tile_experts, used, tokens, top_k, pairs)
    for device in (emulated.ONE_BLOCK, emulated.SPLITTING, emulated.CLUSTERED):
        splits = 2 if device.sms > 1 else 1
        out = emulated.experts(
            x, packed, sorted_rows, tile_experts, used, tokens, top_k, pairs, device=device, splits=splits, seed=3
        )
        assert ((out.double() - expected).abs() <= 2.0**-8 * expected.abs() + 1e-3).all()
        assert ((out.double() - reference.double()).abs() <= 2.0**-7 * expected.abs() + 1e-3).all()
