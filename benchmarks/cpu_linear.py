"""Linear layers on one CPU, peers side by side in one run.

    python benchmarks/cpu_linear.py [--quick] [--threads 1 2] [--rounds N] [--json FILE]

Protocol: every implementation of a case holds so many copies of its weight that together they exceed the
last-level cache several times, and each call takes the next copy. Implementations take turns, call by call;
the least time over the rounds is reported (the call that was least disturbed by other work on the machine)
with the median beside it. One thread is timed by its CPU time, which leaves out the time that other
processes hold the core (not what they do to caches and to the memory bus); more threads by the wall clock,
which means little on a machine that is not idle. Each is checked against the dequantized weight first. "read" is a
plain loop of vector loads over as many bytes as the W4 weight. Peers come from vLLM's CPU build (in-tree
cpu_gemm_wna16, oneDNN) and PyTorch; one that cannot run is named with the reason.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from vllm_quant_kernels import library, reference
from vllm_quant_kernels.canonical import CanonicalWeight
from vllm_quant_kernels.ops import linear, linear_int8
from vllm_quant_kernels.pack import PackedWeight, pack, pack_int8

CACHE_BYTES = 128 << 20
GROUP = 128
Call = Callable[[int], torch.Tensor]

# (name, N, K): the layers as vLLM fuses them.
LLAMA3_8B = [("qkv", 6144, 4096), ("o", 4096, 4096), ("gate_up", 28672, 4096), ("down", 4096, 14336)]
QWEN3_06B = [("qkv", 4096, 1024), ("o", 1024, 2048), ("gate_up", 6144, 1024), ("down", 1024, 3072)]


@dataclass(frozen=True)
class Result:
    shape: str
    threads: int
    m: int
    name: str
    bytes: int
    best_us: float
    median_us: float


def copies(make: Callable[[], list[torch.Tensor]], nbytes: int) -> list[list[torch.Tensor]]:
    return [make() for _ in range(max(2, CACHE_BYTES // nbytes))]


def weight(n: int, k: int, bits: int, zeros: bool = False, kind: str = "int") -> CanonicalWeight:
    codes = torch.randint(0, 1 << bits, (n, k), dtype=torch.uint8)
    if kind != "int":
        codes &= 0xB7  # finite
    scales = ((torch.rand(n, k // GROUP) + 0.5) / 64).bfloat16()
    table = torch.randint(0, 1 << bits, (n, k // GROUP), dtype=torch.uint8) if zeros else None
    return CanonicalWeight(codes, scales, bits, GROUP, table, kind)  # type: ignore[arg-type]


def ours(w: CanonicalWeight, x: torch.Tensor) -> tuple[Call, int]:
    first = pack(w)

    def copy() -> PackedWeight:
        zeros = None if first.zeros is None else first.zeros.clone()
        return dataclasses.replace(first, data=first.data.clone(), scales=first.scales.clone(), zeros=zeros)

    packed = [first] + [copy() for _ in range(max(1, CACHE_BYTES // first.nbytes))]
    return (lambda i: linear(x, packed[i % len(packed)])), first.nbytes


def in_tree_w4(w: CanonicalWeight, x: torch.Tensor) -> tuple[Call, int]:
    """vLLM's cpu_gemm_wna16: int32 words of 8 neighbouring channels, blocks of 16 channels."""
    from vllm._custom_ops import cpu_gemm_wna16

    n, k = w.codes.shape
    words = torch.zeros(k, n // 8, dtype=torch.int32)
    for j in range(8):
        words |= w.codes[j::8].T.int() << (4 * j)
    blocked = words.view(k, -1, 2).permute(1, 0, 2).reshape(-1, k * 2).contiguous()
    scales = w.scales.T.contiguous().to(x.dtype)
    sets = copies(lambda: [blocked.clone(), scales.clone()], blocked.nbytes)

    def call(i: int) -> torch.Tensor:
        data, table = sets[i % len(sets)]
        return cpu_gemm_wna16(x, data, table, None, None, 8, "vec")

    return call, blocked.nbytes + scales.nbytes


def torch_bf16(w: CanonicalWeight, x: torch.Tensor) -> tuple[Call, int]:
    dense = w.dequantize(torch.bfloat16)
    sets = copies(lambda: [dense.clone()], dense.nbytes)
    return (lambda i: torch.nn.functional.linear(x, sets[i % len(sets)][0])), dense.nbytes


def int8_pair(n: int, k: int, x: torch.Tensor) -> dict[str, tuple[Call, int]]:
    codes = torch.randint(-127, 128, (n, k), dtype=torch.int8)
    scales = (torch.rand(n) + 0.5) / 1000
    expected = reference.w8a8_linear(x, codes, scales)
    packed = [pack_int8(codes, scales) for _ in range(max(2, CACHE_BYTES // (n * k)))]
    found: dict[str, tuple[Call, int]] = {"W8A8": (lambda i: linear_int8(x, packed[i % len(packed)]), packed[0].nbytes)}
    try:
        from vllm import _custom_ops as ops

        handlers = [
            ops.create_onednn_scaled_mm(codes.clone().t(), scales.view(-1, 1), x.dtype, True, False) for _ in packed
        ]

        def call(i: int) -> torch.Tensor:
            q, scale, _ = ops.onednn_scaled_int8_quant(x)
            out = torch.empty(x.shape[0], n, dtype=x.dtype)
            ops.onednn_scaled_mm(handlers[i % len(handlers)], q, out, scale, None, None, None)
            return out

        found["oneDNN INT8"] = (call, n * k)
    except (ImportError, AttributeError, RuntimeError) as error:
        Console().print(f"oneDNN INT8 cannot run: {error}")
    for name, (run, _) in found.items():
        check(name, run, expected, 0.02)
    return found


def check(name: str, call: Call, expected: torch.Tensor, tolerance: float) -> None:
    """Refuse to time an implementation whose mean relative error exceeds ``tolerance``."""
    got = call(0).double()
    error = float((got - expected.double()).norm() / expected.double().norm())
    if not error <= tolerance:
        raise SystemExit(f"{name}: relative error {error:.3g} exceeds {tolerance}")


def reader(nbytes: int) -> tuple[Call, int]:
    memory = torch.randint(0, 256, (max(2, CACHE_BYTES // nbytes), nbytes), dtype=torch.uint8)
    lib = library.load()

    def call(i: int) -> torch.Tensor:
        lib.vqp_read(memory[i % len(memory)].data_ptr(), nbytes, torch.get_num_threads())
        return memory

    return call, nbytes


def candidates(n: int, k: int, m: int, every: bool) -> dict[str, tuple[Call, int]]:
    x = torch.randn(m, k).bfloat16()
    found: dict[str, tuple[Call, int]] = {}
    w4 = weight(n, k, 4)
    weights = {"W4": w4}
    if every and m == 1:
        weights = {f"W{bits}": weight(n, k, bits) for bits in (2, 3, 5, 6, 7, 8)}
        weights |= {"W4": w4, "W4 zeros": weight(n, k, 4, True), "FP8": weight(n, k, 8, kind="fp8_e4m3")}
    for name, w in weights.items():
        found[name] = ours(w, x)
        check(name, found[name][0], reference.wna16_linear(x, w, wide=torch.float32), 0.01)
    for name, make in (("in-tree W4", in_tree_w4), ("torch BF16", torch_bf16)):
        try:
            found[name] = make(w4, x)
        except (ImportError, AttributeError, RuntimeError) as error:
            Console().print(f"{name} cannot run: {error}")
            continue
        check(name, found[name][0], reference.wna16_linear(x, w4, wide=torch.float32), 0.02)
    if every:
        found |= int8_pair(n, k, x)
    if m == 1:
        found["read"] = reader(found["W4"][1])
    return found


def measure(shape: str, n: int, k: int, m: int, threads: int, rounds: int, every: bool) -> list[Result]:
    torch.set_num_threads(threads)
    found = candidates(n, k, m, every)
    clock = time.thread_time if threads == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in found}
    for i in range(rounds + 1):
        for name, (call, _) in found.items():
            start = clock()
            call(i)
            times[name].append(clock() - start)
    return [
        Result(shape, threads, m, name, nbytes, min(t[1:]) * 1e6, statistics.median(t[1:]) * 1e6)
        for (name, (_, nbytes)), t in zip(found.items(), times.values(), strict=True)
    ]


def show(console: Console, results: list[Result]) -> None:
    best = {r.name: r.best_us for r in results}
    first = results[0]
    table = Table(title=f"{first.shape}, M = {first.m}, {first.threads} thread(s)")
    for column in ("", "MB", "least us", "median us", "GB/s", "W4 is faster by"):
        table.add_column(column, justify="right" if column else "left")
    for r in results:
        rate, ratio = r.bytes / r.best_us / 1e3, r.best_us / best["W4"]
        table.add_row(
            r.name, f"{r.bytes / 1e6:.1f}", f"{r.best_us:.0f}", f"{r.median_us:.0f}", f"{rate:.1f}", f"{ratio:.2f}x"
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=40, help="calls of each implementation at M = 1")
    parser.add_argument("--quick", action="store_true", help="one shape only")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    console = Console()
    results: list[Result] = []
    console.print(f"level {library.level()}, load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} CPUs")
    for threads in options.threads:
        cases = [("Llama-3-8B up", 14336, 4096, m, True) for m in (1, 8, 512)]
        if not options.quick:
            for model, layers in (("Llama-3-8B", LLAMA3_8B), ("Qwen3-0.6B", QWEN3_06B)):
                cases += [(f"{model} {name}", n, k, m, False) for name, n, k in layers for m in (1, 8)]
        for shape, n, k, m, every in cases:
            rounds = options.rounds if m < 64 else max(3, options.rounds // 8)
            found = measure(shape, n, k, m, threads, rounds, every)
            show(console, found)
            results += found
    if options.json:
        options.json.write_text(json.dumps([dataclasses.asdict(r) for r in results], indent=1) + "\n")


if __name__ == "__main__":
    main()
