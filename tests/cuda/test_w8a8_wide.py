"""The W8A8 GEMMs for large batches (Hopper's wgmma), thread by thread on the CPU: barriers, TMA, wgmma."""

from __future__ import annotations

import ctypes
import random
from typing import Any

import pytest
import torch

from tests.cuda import emulated, emulated_w8a8
from tests.cuda.test_w8a8 import activations, check, scheme_options, weight
from vllm_quant_kernels.cuda.w8a8 import activation
from vllm_quant_kernels.cuda.w8a8 import native as w8a8_native
from vllm_quant_kernels.cuda.w8a8.activation import FP8, INT8, Activations
from vllm_quant_kernels.cuda.w8a8.weight import WeightW8A8

EPSILON = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def hopper(sms: int) -> emulated.Device:
    """So few that blocks take several tiles."""
    return emulated.Device(sms, 227 << 10, 228 << 10, 1, 1)


def random_case(number: int) -> dict[str, Any]:
    pick = random.Random(number)
    kind = pick.choice(["int8", "fp8", "fp8-blocks"])
    promote = kind == "fp8-blocks" or (kind == "fp8" and pick.random() < 0.5)
    scheme = pick.choice(["symmetric", "asymmetric", "static", "static-zero"]) if kind == "int8" else "symmetric"
    return {
        "m": pick.choice([1, 40, 100, 128, 130, 200, 300]),
        "n": pick.choice([1, 16, 72, 128, 131, 136, 200, 264]),
        "k": pick.choice([16, 60, 128, 133, 384, 513, 900, 1100]),
        "kind": kind,
        "scheme": pick.choice(["symmetric", "static"]) if kind == "fp8" else scheme,
        "dtype": pick.choice(list(EPSILON)),
        "bias": pick.choice([None, torch.float32, torch.bfloat16, torch.float16]),
        "promote": promote,
        "channels": 128 if promote else pick.choice([128, 256]),
        "cluster": pick.choice([1, 2]),
        "device": hopper(pick.choice([2, 3, 4])),
        "late_copies": pick.random() < 0.5,
        "dependent": pick.random() < 0.7,
    }


@pytest.mark.parametrize("number", range(24))
def test_random_problems_match_the_reference(number: int) -> None:
    case = random_case(number)
    w, x = weight(case["n"], case["k"], case["kind"], number), activations(case["m"], case["k"], case["dtype"], number)
    bias = None if case["bias"] is None else torch.randn(case["n"]).to(case["bias"])
    options = scheme_options(case["scheme"])
    names = ("promote", "device", "channels", "cluster", "late_copies", "dependent")
    chosen = {name: case[name] for name in names}
    y, plan = emulated_w8a8.linear(x, w, bias, seed=number, warpgroups=True, **chosen, **options)
    assert plan.channels == case["channels"]
    check(y, activation.quantize(x, w.kind, group=128 if w.blocks else 0, **options), w, bias)


@pytest.mark.parametrize("kind", ["int8", "fp8", "fp8-blocks"])
def test_the_order_of_warps_and_copies_does_not_show(kind: str) -> None:
    """A ring that wraps, several tiles a block, clusters of two."""
    w, x = weight(260, 1300, kind), activations(300, 1300, torch.bfloat16, 1)
    results = []
    for seed, late in ((1, True), (2, False), (3, True)):
        y, _ = emulated_w8a8.linear(
            x, w, device=hopper(2), warpgroups=True, promote=w.blocks, channels=128, cluster=2, seed=seed,
            late_copies=late,
        )  # fmt: skip
        results.append(y)
    check(results[0], activation.quantize(x, w.kind, group=128 if w.blocks else 0), w, None)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("m", [2048, 2049])
def test_whole_bands_of_tokens(m: int) -> None:
    w, x = weight(16, 16, "int8"), activations(m, 16, torch.bfloat16, 1)
    y, _ = emulated_w8a8.linear(x, w, device=hopper(3), warpgroups=True, channels=128, cluster=1)
    check(y, activation.quantize(x, w.kind), w, None)


def test_nothing_beside_the_tensors_is_read() -> None:
    """NaN around the codes: rows past M and N, columns past K."""
    store = torch.full((140, 192), torch.nan, dtype=torch.float16)
    store[:, :101] = activations(140, 101, torch.float16, 1)
    x = store[:130, :101]
    for kind, promote in (("int8", False), ("fp8", True)):
        w = weight(130, 101, kind)
        y, _ = emulated_w8a8.linear(x, w, device=hopper(4), warpgroups=True, promote=promote, channels=128, cluster=2)
        check(y, activation.quantize(x, w.kind), w, None)


def meta_call(kind: str, m: int, n: int, k: int, promote: bool, batch_invariant: bool = False) -> w8a8_native.Product:
    scales = torch.ones(-(-n // 128), -(-k // 128)) if kind == "fp8-blocks" else torch.ones(n)
    code = INT8 if kind == "int8" else FP8
    w = WeightW8A8(torch.empty(0, dtype=torch.int8), scales, torch.ones(1, dtype=torch.int32), code, n, k)
    rows = scales.new_ones(-(-k // 128), -(-m // 4) * 4) if w.blocks else torch.ones(m)
    out = torch.empty(m, n, dtype=torch.bfloat16, device="meta")
    a = Activations(torch.empty(m, k, device="meta"), rows, None)
    return w8a8_native.describe(a, out, w, None, promote, batch_invariant, warpgroups=True)


@pytest.mark.parametrize("kind", ["int8", "fp8", "fp8-blocks"])
def test_every_plan_fits_and_covers(kind: str) -> None:
    for n, k in ((4096, 4096), (28672, 8192), (8192, 28672), (640, 2048), (100, 64)):
        for m in (1, 65, 129, 300, 1000, 8192, 100_000):
            for promote in (False, True):
                plan = emulated_w8a8.make_plan(meta_call(kind, m, n, k, promote), emulated.H200)
                assert plan.shared_bytes <= emulated.H200.smem_per_cta
                assert plan.m_tiles * plan.tokens >= m
                assert plan.n_tiles * plan.channels >= n
                assert plan.channels == 128 or (not (promote and kind == "fp8") and kind != "fp8-blocks")
                assert 1 <= plan.ctas <= 132
                assert not plan.clustered or plan.ctas % 2 == 0
                assert plan.splits == 1


def test_the_largest_layers_take_wide_tiles_in_clusters() -> None:
    for kind, channels in (("int8", 256), ("fp8", 256), ("fp8-blocks", 128)):
        plan = emulated_w8a8.make_plan(meta_call(kind, 8192, 8192, 8192, False), emulated.H200)
        assert (plan.channels, plan.clustered, plan.ctas) == (channels, 1, 132)


@pytest.mark.parametrize("cluster", [1, 2])
def test_every_tile_comes_once(cluster: int) -> None:
    for m_tiles, n_tiles in ((1, 1), (1, 7), (3, 5), (64, 9), (37, 32), (35, 3)):
        units = -(-m_tiles // cluster)
        count = units * n_tiles
        out = torch.full((count, 2), -1, dtype=torch.int32)
        emulated.library().vqp_emulator_w8a8_wide_tiles(count, units, n_tiles, cluster, ctypes.c_void_p(out.data_ptr()))
        found = {(unit, tile) for unit, tile in out.tolist()}
        assert found == {(unit, tile) for unit in range(units) for tile in range(n_tiles)}


def test_what_has_no_plan() -> None:
    with pytest.raises(ValueError, match="compute capability"):
        emulated_w8a8.make_plan(meta_call("int8", 300, 256, 256, False), emulated.A100)
    with pytest.raises(ValueError, match="compute capability"):
        emulated_w8a8.make_plan(meta_call("fp8", 300, 256, 256, True, batch_invariant=True), emulated.H200)
    assert emulated_w8a8.make_plan(meta_call("int8", 300, 256, 256, False, True), emulated.H200).channels
