"""Ours beside the kernel that would serve otherwise: both packed from one weight, timed in turns.

Every call of a case meets another copy of the weight, which together exceed the L2 cache, as the layers of a model do.
On a GPU the calls are one CUDA graph where the kernel can be captured.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from vllm_quant_kernels import registry
from vllm_quant_kernels.canonical import CanonicalWeight
from vllm_quant_kernels.cuda.verify.cases import Place, activations, random_weight
from vllm_quant_kernels.cuda.verify.verdict import Timing
from vllm_quant_kernels.kernel import Kernel, Packed
from vllm_quant_kernels.scheme import E4M3, PER_CHANNEL, ActivationScheme, Int, WeightScheme
from vllm_quant_kernels.torch_device import device_of

# A decoder layer of an 8B model: the attention's output, and gate and up fused.
SHAPES = ((4096, 4096), (28672, 4096))
ROWS = (1, 8, 32, 128, 512, 2048)
GROUP, REPEATS, MAX_COPIES = 128, 7, 16
# Relative error (Frobenius) beyond which the other kernel does not compute the same.
TOLERANCE = 0.05


@dataclass(frozen=True)
class Sizes:
    """The cases: shapes (N, K) and M."""

    shapes: tuple[tuple[int, int], ...] = SHAPES
    rows: tuple[int, ...] = ROWS


def scheme_of(timed: str) -> WeightScheme:
    """The scheme whose weights stand for a speed class."""
    kernel, _, kind = timed.partition("-")
    if kernel == "wna16":
        return WeightScheme(E4M3, PER_CHANNEL) if kind == "fp8" else WeightScheme(Int(int(kind[3:])), GROUP)
    if kind == "fp8-blocks":
        act = ActivationScheme(E4M3, "group", group_size=GROUP)
        return WeightScheme(E4M3, GROUP, block=(GROUP, GROUP), activation=act)
    value = Int(8) if kind == "int8" else E4M3
    return WeightScheme(value, PER_CHANNEL, activation=ActivationScheme(value))


def weight_of(scheme: WeightScheme, n: int, k: int, seed: int, device: torch.device) -> CanonicalWeight:
    """A random weight of a scheme of :func:`scheme_of`."""
    kind = f"int{scheme.bits}" if scheme.is_int else "fp8"
    w = random_weight(n, k, kind, scheme.group_of(k), seed=seed, device=device)
    if scheme.block is None:
        return w
    return replace(w, scales=w.scales[::GROUP].repeat_interleave(GROUP, dim=0)[:n].contiguous())


def timings(timed: str, place: Place, sizes: Sizes | None = None) -> Iterator[Timing]:
    """Every case of a speed class; VQP_CUDA_KERNELS is 0 from then on, so that the registry names the other kernel.

    Raises:
        ValueError: the other kernel computes something else.
        Exception: whatever the other kernel raises.
    """
    os.environ["VQP_CUDA_KERNELS"] = "0"
    scheme, sizes = scheme_of(timed), sizes or Sizes()
    name = f"cuda-{timed.partition('-')[0]}"
    ours = next(kernel for kernel in registry.kernels() if kernel.name == name)
    for n, k in sizes.shapes:
        place.step(f"{timed}: packing {n} x {k}")
        copies = range(_copies(n, k, place))
        weights, where = [weight_of(scheme, n, k, seed, place.device) for seed in copies], device_of(place.device)
        with _loading():
            theirs = registry.choose(scheme, n, k, where, weight=weights[0]).kernel
            both = [[kernel.pack(w, scheme) for w in weights] for kernel in (ours, theirs)]
        del weights
        for m in sizes.rows:
            place.step(f"{timed}: {theirs.name}, m {m}, n {n}, k {k}")
            x = activations(m, k, torch.bfloat16, m, place.device)
            _compare(ours, theirs, both, x)
            mine, other = in_turns([_work(p.kernel, packed, x) for p, packed in ((b[0], b) for b in both)], place)
            count = len(both[0])
            yield Timing(m, n, k, mine * 1e6 / count, other * 1e6 / count, theirs.label_on(scheme, n, k, where))


@contextmanager
def _loading() -> Iterator[None]:
    """As while vLLM loads a model: torch's default dtype is that of the activations."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _copies(n: int, k: int, place: Place) -> int:
    """Weights that together exceed twice the L2 cache, counted at 4 bits."""
    if not place.on_gpu:
        return 1
    cache = torch.cuda.get_device_properties(place.device).L2_cache_size
    return min(MAX_COPIES, max(2, -(-2 * cache // (n * k // 2))))


def _compare(ours: Kernel, theirs: Kernel, both: Sequence[Sequence[Packed]], x: torch.Tensor) -> None:
    mine, other = (
        kernel.apply(packed[0], packed[0].tensors, x, None).float()
        for kernel, packed in zip((ours, theirs), both, strict=True)
    )
    error = float((mine - other).norm() / other.norm())
    if not error <= TOLERANCE:
        raise ValueError(f"{theirs.name} and ours differ by {error:.2g} of the result")


def _work(kernel: Kernel, packed: Sequence[Packed], x: torch.Tensor) -> Callable[[], None]:
    def run() -> None:
        for p in packed:
            kernel.apply(p, p.tensors, x, None)

    return run


def in_turns(works: Sequence[Callable[[], None]], place: Place, repeats: int = REPEATS) -> list[float]:
    """Median seconds of each work; the order alternates, so that a clock that drifts favours none."""
    ready = [_captured(work) if place.on_gpu else work for work in works]
    samples: list[list[float]] = [[] for _ in ready]
    for turn in range(repeats):
        for i in range(len(ready)) if turn % 2 else reversed(range(len(ready))):
            samples[i].append(_seconds(ready[i], place))
    return [statistics.median(found) for found in samples]


def _captured(work: Callable[[], None]) -> Callable[[], None]:
    """The work as a CUDA graph; itself where it cannot be captured."""
    for _ in range(2):
        work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            work()
    except RuntimeError:
        torch.cuda.synchronize()
        return work
    graph.replay()
    torch.cuda.synchronize()
    return graph.replay


def _seconds(work: Callable[[], None], place: Place) -> float:
    if not place.on_gpu:
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3
