"""Checks of activation quantization and of the 8-bit products."""

from __future__ import annotations

import random
from typing import Any

import torch

from vllm_quant_kernels.canonical import CanonicalWeight
from vllm_quant_kernels.cuda.verify import cases
from vllm_quant_kernels.cuda.verify.cases import EPSILON, AbsentError, Place, WrongError, activations, random_weight
from vllm_quant_kernels.cuda.w8a8 import activation, native, ops
from vllm_quant_kernels.cuda.w8a8 import quantize as w8a8_quantize
from vllm_quant_kernels.cuda.w8a8.activation import FP8, GROUP, INT8
from vllm_quant_kernels.cuda.w8a8.choice import FUSED_ROWS, Backend
from vllm_quant_kernels.cuda.w8a8.weight import WeightW8A8, dequantize_weight, make_weight, product

ROWS: dict[Backend, tuple[int, ...]] = {
    "fused": (1, 2, 4, 5, 8, 13, FUSED_ROWS),
    "own": (1, 2, 5, 8, 16, 17, 33, 64, 100, 257),
    "wgmma": (65, 100, 129, 257, 700, 1000, 2049),
}
FP8_CORES = (8, 9)
# FP8 sums of a tensor core keep at least 13 bits of the largest term where they leave it every 128 columns.
PROMOTED, FAST = 2.0**-13, 2.0**-10


def weight(n: int, k: int, kind: str, seed: int, device: torch.device) -> WeightW8A8:
    """``kind``: int8, fp8 (both with a scale a channel) or fp8-blocks (128 x 128)."""
    if kind == "int8":
        return make_weight(random_weight(n, k, kind, None, scale_dtype=torch.float32, seed=seed, device=device))
    canonical = random_weight(n, k, "fp8", None if kind == "fp8" else GROUP, seed=seed, device=device)
    if kind == "fp8-blocks":
        blocks = canonical.scales[::GROUP].repeat_interleave(GROUP, dim=0)[:n].contiguous()
        canonical = CanonicalWeight(canonical.codes, blocks, 8, GROUP, None, "fp8_e4m3")
    return make_weight(canonical)


def quantize(place: Place) -> None:
    """Codes, scales and zero points are the formulas of activation.py on the CPU, bit for bit."""
    one = torch.tensor
    schemes: dict[str, dict[str, Any]] = {
        "int8": {"kind": INT8},
        "int8 asymmetric": {"kind": INT8, "symmetric": False},
        "int8 static": {"kind": INT8, "in_scale": one([0.031])},
        "int8 static zero": {"kind": INT8, "in_scale": one([0.017]), "in_zero": one([-37], dtype=torch.int32)},
        "fp8": {"kind": FP8},
        "fp8 static": {"kind": FP8, "in_scale": one([0.0071])},
        "fp8 groups": {"kind": FP8, "group": GROUP},
    }
    shapes = ((1, 2048), (33, 4096), (64, 131), (257, 8192), (5, 28672)) if place.large else ((1, 200), (5, 131))
    for name, options in schemes.items():
        given: dict[str, Any] = {
            key: v.to(place.device) if isinstance(v, torch.Tensor) else v for key, v in options.items()
        }
        for m, k in shapes:
            what = f"quantizing to {name}, m {m}, k {k}"
            place.step(what)
            for dtype in EPSILON:
                x = activations(m, k, dtype, k, "cpu") * torch.logspace(-3, 3, m)[:, None].to(dtype)
                x[0, 3], x[0, 5] = torch.inf, torch.nan
                wanted = activation.quantize(x, **options)
                for _ in range(2):
                    found = w8a8_quantize.quantize_cuda(x.to(place.device), **given)
                    cases.same(found.q.cpu().view(torch.uint8), wanted.q.view(torch.uint8), what)
                    cases.same(found.scales.cpu()[..., :m], wanted.scales[..., :m], what)
                    if wanted.zeros is not None:
                        assert found.zeros is not None
                        cases.same(found.zeros.cpu(), wanted.zeros, what)


def products(kind: str, backend: Backend, place: Place) -> None:
    """One implementation for one kind of weight."""
    if place.on_gpu and kind != "int8" and torch.cuda.get_device_capability(place.device) < FP8_CORES:
        raise AbsentError("needs FP8 tensor cores (compute capability 8.9)")
    if backend == "wgmma" and not (place.on_gpu and native.serves_wgmma(place.device)):
        raise AbsentError("needs a Hopper GPU and the library's code for sm_90a")
    _one_hot(kind, backend, place)
    _random(kind, backend, place)
    if backend == "own":
        _batch_invariance(kind, place)
    if place.on_gpu:
        _graph_and_streams(kind, backend, place)
    if place.large:
        _large(kind, backend, place)


def _linear(
    place: Place, x: torch.Tensor, w: WeightW8A8, backend: Backend, bias: torch.Tensor | None = None, **options: Any
) -> torch.Tensor:
    if not place.on_gpu:
        return ops.linear_w8a8(x, w, bias, **options)
    return native.linear(x, w, bias, backend=backend, **options)


def _check(
    y: torch.Tensor, x: torch.Tensor, w: WeightW8A8, bias: torch.Tensor | None, kept: float, what: str, **options: Any
) -> None:
    """INT8 sums are exact: equal bits. FP8 against fp64 of the same codes."""
    a = activation.quantize(x, w.kind, group=GROUP if w.blocks else 0, **options)
    expected = product(a, w, bias)
    if not bool(torch.isfinite(y).all()):
        raise WrongError(f"{what}: an output was not written")
    if w.kind == INT8:
        cases.same(y, expected.to(y.dtype), what)
        return
    size = activation.dequantize(a, w.k).abs() @ dequantize_weight(w, torch.float64).abs().T
    allowed = 1.01 * EPSILON[y.dtype] * expected.abs() + kept * size
    if bias is not None:
        allowed = allowed + EPSILON[y.dtype] * bias.double().abs()
    share = float(((y.double() - expected.double()).abs() / (allowed + 1e-30)).max())
    if not share <= 1:
        raise WrongError(f"{what}: error {share:.3g} times what is allowed")


def _one_hot(kind: str, backend: Backend, place: Place) -> None:
    n, k = (264, 640) if place.large else (40, 256)
    place.step("one-hot activations")
    w = weight(n, k, kind, 0, place.device)
    units = torch.eye(k, dtype=torch.bfloat16, device=place.device)
    step = {"fused": FUSED_ROWS, "own": 64, "wgmma": k}.get(backend, k)
    for start in range(0, k, step):
        x = units[start : start + step]
        _check(_linear(place, x, w, backend), x, w, None, 2.0**-22, f"one-hot activations from {start}")


def _random(kind: str, backend: Backend, place: Place) -> None:
    for number in range(place.numbers):
        pick = random.Random(number)
        m = pick.choice(ROWS[backend])
        n, k = pick.choice((16, 40, 99, 128, 200, 1280)), pick.choice((64, 100, 128, 256, 777, 1024, 2048))
        if not place.large:
            m, n, k = min(m, 17), min(n, 40), min(k, 256)
        dtype = pick.choice(list(EPSILON))
        scheme = pick.choice(("symmetric", "asymmetric", "static", "static zero"))
        options = _options(kind, scheme, place.device)
        promote = backend == "fused" or kind != "fp8" or pick.random() < 0.6
        what = f"m {m}, n {n}, k {k}, {scheme}, {dtype}{'' if promote else ', fast sums'}"
        place.step(what)
        w = weight(n, k, kind, number, place.device)
        x = activations(m, k, dtype, number, place.device)
        bias = cases.random_bias(n, pick, number, place.device)
        place.poison()
        y = _linear(place, x, w, backend, bias, promote=promote, **options)
        _check(y, x, w, bias, PROMOTED if promote else FAST, what, **options)
        cases.same(_linear(place, x, w, backend, bias, promote=promote, **options), y, f"{what}, repeated")


def _options(kind: str, scheme: str, device: torch.device) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if kind == "int8" and scheme == "asymmetric":
        options["symmetric"] = False
    if kind != "fp8-blocks" and scheme.startswith("static"):
        options["in_scale"] = torch.tensor([0.031], device=device)
    if kind == "int8" and scheme == "static zero":
        options["in_zero"] = torch.tensor([21], dtype=torch.int32, device=device)
    return options


def _batch_invariance(kind: str, place: Place) -> None:
    n, k, m = (1024, 4096, 300) if place.large else (48, 256, 24)
    place.step("batch invariance")
    w, x = weight(n, k, kind, 0, place.device), activations(m, k, torch.bfloat16, device=place.device)
    whole = ops.linear_w8a8(x, w, batch_invariant=True)
    for rows in (slice(0, 1), slice(5, 12), slice(m // 3, m // 3 + 16)):
        cases.same(ops.linear_w8a8(x[rows], w, batch_invariant=True), whole[rows], "batch invariance")


def _graph_and_streams(kind: str, backend: Backend, place: Place) -> None:
    m = {"fused": 4, "own": 64, "wgmma": 256}.get(backend, 64)
    place.step(f"a CUDA graph, m {m}")
    weights = [weight(1024, 4096, kind, seed, place.device) for seed in range(2)]
    inputs = [activations(m, 4096, torch.bfloat16, seed, place.device) for seed in range(3)]
    x = inputs[0].clone()
    calls = [lambda x, w=w: native.linear(x, w, backend=backend) for w in weights]
    for y, given in zip(cases.in_a_graph(place, calls[0], x, inputs), inputs, strict=True):
        _check(y, given, weights[0], None, PROMOTED, "a replay of a CUDA graph")
    place.step(f"two streams, m {m}")
    expected = [call(x) for call in calls]
    for found, wanted in zip(cases.on_two_streams(calls, x), expected, strict=True):
        for y in found:
            cases.same(y, wanted, "two streams at once")


def _large(kind: str, backend: Backend, place: Place) -> None:
    for n, k in ((512, 14336), (14336, 1024)):
        w = weight(n, k, kind, 0, place.device)
        for m in ROWS[backend][-1:] if backend != "fused" else (1, FUSED_ROWS):
            what = f"m {m}, n {n}, k {k}"
            place.step(what)
            x = activations(m, k, torch.bfloat16, m, place.device)
            y = _linear(place, x, w, backend)
            _check(y, x, w, None, PROMOTED, what)
            for _ in range(5):
                cases.same(_linear(place, x, w, backend), y, f"{what}, repeated")
