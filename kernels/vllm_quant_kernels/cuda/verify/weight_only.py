"""Checks of packing, of the weight-only products and of their grouped form."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from vllm_quant_kernels.cuda import native, ops
from vllm_quant_kernels.cuda.layout import pack_codes
from vllm_quant_kernels.cuda.pack import dequantize_cuda, pack_cuda
from vllm_quant_kernels.cuda.stack import stack_cuda
from vllm_quant_kernels.cuda.verify import cases
from vllm_quant_kernels.cuda.verify.cases import AbsentError, Place, WrongError, activations, random_weight
from vllm_quant_kernels.cuda.verify.families import WEIGHT_ONLY
from vllm_quant_kernels.cuda.weight import PackedCuda

DTYPES = (torch.bfloat16, torch.float16)
NARROW_ROWS, WIDE_ROWS = (1, 2, 5, 8, 13, 16, 24, 32, 33, 64), (65, 100, 128, 257, 700, 1000)
EXPERTS, TOP_K = 8, 2


def pack(place: Place) -> None:
    """The device packs as PyTorch does, byte for byte, and what it packs is the weight."""
    for kind in WEIGHT_ONLY:
        place.step(f"packing {kind}")
        w = random_weight(208, 512, kind, 64, device=place.device)
        cases.same(pack_cuda(w).data.cpu(), pack_codes(w.codes.cpu(), w.bits), f"packing {kind}")
        shuffled = random_weight(72, 500, kind, 32, order="shuffled", seed=1, device=place.device)
        found, expected = dequantize_cuda(pack_cuda(shuffled), torch.float64), shuffled.dequantize(torch.float64)
        cases.same(found, expected, f"packing {kind} with act-order")


def narrow(kind: str, place: Place) -> None:
    """Tiles of 8 to 64 rows."""
    _one_hot(kind, place, (8, 16, 32, 64))
    _random(kind, place, NARROW_ROWS)
    _batch_invariance(kind, place, 300 if place.large else 24)
    if place.on_gpu:
        _graph_and_streams(kind, place, 4)
        _chain(kind, place)
    if place.large:
        _large(kind, place, (1, 16, 64))


def wide(kind: str, place: Place) -> None:
    """Tiles of 128 rows and more."""
    if not native.has_warpgroups(place.device):
        raise AbsentError("needs a Hopper GPU and the library's code for sm_90a")
    _one_hot(kind, place, (128,))
    _random(kind, place, WIDE_ROWS)
    if place.on_gpu:
        _graph_and_streams(kind, place, 200)
    if place.large:
        _large(kind, place, (128, 1000, 2048))


def _zeros(kind: str, *choices: str) -> tuple[str, ...]:
    return choices if kind != "fp8" else ("none",)


def _one_hot(kind: str, place: Place, tokens: tuple[int, ...]) -> None:
    """A unit vector reads one column of the weight, bit for bit: packing and dequantization without any sum."""
    n, k = (200, 328) if place.large else (40, 96)
    for dtype in DTYPES:
        w = random_weight(n, k, kind, 32, _zeros(kind, "integer")[0], scale_dtype=dtype, device=place.device)
        packed, expected = pack_cuda(w), w.dequantize(torch.float32).T.to(dtype)
        units = torch.eye(k, dtype=dtype, device=place.device)
        for rows in tokens:
            place.step(f"one-hot, {rows} rows, {dtype}")
            for start in range(0, k, rows):
                place.poison()
                y = ops.linear_cuda(units[start : start + rows], packed)
                cases.same(y, expected[start : start + rows], f"one-hot activations, {rows} rows, {dtype}")


def _random(kind: str, place: Place, rows: tuple[int, ...]) -> None:
    """Random sizes, groups, zero points, orders and dtypes, each call repeated: equal bits."""
    is_wide = min(rows) > 64
    for number in range(place.numbers):
        pick = random.Random(number)
        m = pick.choice(rows)
        n, k = pick.choice((16, 40, 128, 200, 512, 1280)), pick.choice((64, 100, 128, 256, 777, 1024, 2048))
        group = pick.choice((None, 32, 64, 128, 256) if is_wide else (None, 16, 32, 64, 128, 256, 96, 24))
        zeros = pick.choice(
            _zeros(kind, "none", "integer") if is_wide else _zeros(kind, "none", "integer", "wide", "floating")
        )
        order = pick.choice(("none", "none", "shuffled", "shard"))
        dtype = pick.choice(DTYPES)
        if not place.large:
            m, n, k = min(m, 17), min(n, 40), min(k, 128)
        what = f"m {m}, n {n}, k {k}, groups of {group}, zeros {zeros}, order {order}, {dtype}"
        place.step(what)
        w = random_weight(n, k, kind, group, zeros, order, seed=number, device=place.device)
        x = activations(m, w.in_features, dtype, number, place.device)
        bias, packed = cases.random_bias(n, pick, number, place.device), pack_cuda(w)
        place.poison()
        y = ops.linear_cuda(x, packed, bias)
        cases.check(y, x, w, bias, what)
        cases.same(ops.linear_cuda(x, packed, bias), y, f"{what}, repeated")


def _batch_invariance(kind: str, place: Place, m: int) -> None:
    """A row has the same bits in any batch where that is asked for."""
    n, k = (1024, 4096) if place.large else (48, 256)
    place.step("batch invariance")
    packed = pack_cuda(random_weight(n, k, kind, 128, device=place.device))
    x = activations(m, k, torch.bfloat16, device=place.device)
    whole = ops.linear_cuda(x, packed, batch_invariant=True)
    for rows in (slice(0, 1), slice(5, 12), slice(m // 3, m // 3 + 16), slice(m - 30 if m > 30 else 0, m)):
        cases.same(ops.linear_cuda(x[rows], packed, batch_invariant=True), whole[rows], "batch invariance")


def _graph_and_streams(kind: str, place: Place, m: int) -> None:
    """Replays of a CUDA graph, and calls on two streams at once."""
    place.step(f"a CUDA graph, m {m}")
    weights = [random_weight(1024, 4096, kind, 128, seed=seed, device=place.device) for seed in range(2)]
    packed = [pack_cuda(w) for w in weights]
    inputs = [activations(m, 4096, torch.float16, seed, place.device) for seed in range(3)]
    x = inputs[0].clone()
    results = cases.in_a_graph(place, lambda x: ops.linear_cuda(x, packed[0]), x, inputs)
    for y, given in zip(results, inputs, strict=True):
        cases.check(y, given, weights[0], what="a replay of a CUDA graph")
    place.step(f"two streams, m {m}")
    expected = [ops.linear_cuda(x, p) for p in packed]
    calls = [lambda x, p=p: ops.linear_cuda(x, p) for p in packed]
    for found, wanted in zip(cases.on_two_streams(calls, x), expected, strict=True):
        for y in found:
            cases.same(y, wanted, "two streams at once")


def empty_results(weights: Sequence[PackedCuda], x: torch.Tensor) -> list[torch.Tensor]:
    """For each square weight an output of NaN."""
    return [torch.full_like(x, torch.nan) for _ in weights]


def chained(
    weights: Sequence[PackedCuda], x: torch.Tensor, results: list[torch.Tensor], *, dependent: int
) -> list[torch.Tensor]:
    """``results``, of which each is the product of the one ahead (``x`` for the first) and a square weight."""
    source = x
    for out, w in zip(results, weights, strict=True):
        call = native.describe(source, out, w, None, False)
        call.dependent = dependent
        native.run(call, native.plan(call), x.device)
        source = out
    return results


def _chain(kind: str, place: Place) -> None:
    """Calls that each read what the one ahead wrote, nothing between them: with dependent launch and without."""
    place.step("a chain of dependent launches")
    n = 2048
    weights = [pack_cuda(random_weight(n, n, kind, 128, seed=i, device=place.device)) for i in range(4)]
    x = activations(4, n, torch.bfloat16, device=place.device)
    expected = chained(weights, x, empty_results(weights, x), dependent=0)
    for _ in range(10):
        for found, wanted in zip(chained(weights, x, empty_results(weights, x), dependent=1), expected, strict=True):
            cases.same(found.nan_to_num(), wanted.nan_to_num(), "a chain of dependent launches")


def _large(kind: str, place: Place, rows: tuple[int, ...]) -> None:
    """Sizes of real layers, several times: a race of a ring that wraps many times shows as a difference."""
    for n, k in ((512, 14336), (14336, 1024)):
        w = random_weight(n, k, kind, 128, _zeros(kind, "integer")[0], device=place.device)
        packed = pack_cuda(w)
        for m in rows:
            place.step(f"m {m}, n {n}, k {k}")
            x = activations(m, k, torch.bfloat16, m, place.device)
            y = ops.linear_cuda(x, packed)
            cases.check(y, x, w, what=f"m {m}, n {n}, k {k}")
            for _ in range(5):
                cases.same(ops.linear_cuda(x, packed), y, f"m {m}, n {n}, k {k}, repeated")


def experts(kind: str, place: Place) -> None:
    """Each pair (token, slot) by its expert, in tiles of every size; pairs of experts elsewhere become zero."""
    n, k, m = (264, 512, 37) if place.large else (40, 128, 9)
    tiles = [8, 16, 32, 64]
    tiles += [128] if native.has_warpgroups(place.device) else []
    for zeros, order in ((_zeros(kind, "integer")[0], "none"), ("none", "shard")):
        weights = [random_weight(n, k, kind, 64, zeros, order, seed=e, device=place.device) for e in range(EXPERTS)]
        packed, k_here = stack_cuda([pack_cuda(w) for w in weights]), weights[0].in_features
        for tokens in tiles:
            place.step(f"experts, tiles of {tokens}, zeros {zeros}, order {order}")
            rows = m if tokens < 128 or not place.large else 500
            generator = torch.Generator().manual_seed(tokens)
            chosen = torch.stack([torch.randperm(EXPERTS, generator=generator)[:TOP_K] for _ in range(rows)]).flatten()
            x = activations(rows, k_here, torch.bfloat16, device=place.device)
            local = [*range(EXPERTS - 1), -1]
            routing = cases.order_by_expert(chosen, EXPERTS, tokens, local, place.device)
            place.poison()
            y = ops.experts_cuda(x, packed, *routing, tokens, TOP_K, rows * TOP_K)
            for e, w in enumerate(weights):
                mine = (chosen == e).nonzero().flatten().to(place.device)
                if local[e] >= 0:
                    cases.check(y[mine], x[mine // TOP_K], w, what=f"expert {e}, tiles of {tokens}")
                elif bool(y[mine].any()):
                    raise WrongError("a pair of an expert elsewhere is not zero")
            again = ops.experts_cuda(x, packed, *routing, tokens, TOP_K, rows * TOP_K)
            cases.same(again, y, f"experts, tiles of {tokens}, repeated")
