"""Linear layers on one CPU, peers side by side in one run.

    python benchmarks/cpu_linear.py --goals --json results.json    the table of goals, 1 and 2 threads (minutes)
    python benchmarks/cpu_linear.py [--quick] [--threads 1 2] [--rounds N] [--ggml FOLDER] [--json FILE]
    python benchmarks/cpu_goals.py results.json --write docs/results/performance.md

Protocol: every implementation of a case holds enough copies of its weight to exceed the last-level cache
several times, and each call uses the next copy. Implementations take turns, call by call; the minimum time over
the rounds is reported (the call that other work on the machine disturbed least) with the median beside it. One
thread is timed by its CPU time, which excludes the time that other processes hold the core (but not their effect
on caches and memory bandwidth); several threads by the wall clock, which means little on a machine that is not
idle. Each implementation is first checked against the dequantized weight. "read" is a plain loop of vector loads
over as many bytes as the W4 weight, once in ordinary memory, which all peers use, and once in the memory that this
package uses (huge_pages.py). Peers come from vLLM's CPU build (in-tree cpu_gemm_wna16, oneDNN), PyTorch and
llama.cpp (Q4_0, see ggml_peer.py; it has its own threads, so it is timed after a pause, at its second call). A
peer that cannot run is named with the reason.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cpu_goals
import torch
from ggml_peer import Ggml, find_library
from rich.console import Console
from rich.table import Table

from vllm_quant_kernels import reference
from vllm_quant_kernels.canonical import CanonicalWeight
from vllm_quant_kernels.cpu import huge_pages, library
from vllm_quant_kernels.cpu.ops import linear, linear_a8, linear_int8
from vllm_quant_kernels.cpu.pack import pack, pack_int8
from vllm_quant_kernels.cpu.weight import PackedWeight

CACHE_BYTES = 128 << 20
GROUP = 128
Call = Callable[[int], torch.Tensor]
CHECK = 0  # the call whose result is checked
LLAMA = "llama.cpp Q4_0"

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


def ours(w: CanonicalWeight, x: torch.Tensor, gemm: Callable[..., torch.Tensor] = linear) -> tuple[Call, int]:
    first = pack(w)

    def copy() -> PackedWeight:
        zeros = None if first.zeros is None else first.zeros.clone()
        data = huge_pages.empty_bytes(first.data.numel()).copy_(first.data)
        return dataclasses.replace(first, data=data, scales=first.scales.clone(), zeros=zeros)

    packed = [first] + [copy() for _ in range(max(1, CACHE_BYTES // first.nbytes))]
    return (lambda i: gemm(x, packed[i % len(packed)])), first.nbytes


def in_tree_w4(w: CanonicalWeight, x: torch.Tensor) -> tuple[Call, int]:
    """vLLM's cpu_gemm_wna16: int32 words of 8 adjacent channels, blocks of 16 channels."""
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


@functools.cache
def ggml(folder: Path | None) -> Ggml:
    return Ggml(find_library(folder))


def llama_cpp(w: CanonicalWeight, x: torch.Tensor, folder: Path | None) -> tuple[Call, int]:
    """llama.cpp's Q4_0: groups of 32, activations quantized to INT8."""
    library = ggml(folder)
    n = w.codes.shape[0]
    data = library.quantize(w.dequantize())
    gemms = [library.gemm(data, n, x) for _ in range(max(2, CACHE_BYTES // len(data)))]

    def call(i: int) -> torch.Tensor:
        gemm = gemms[i % len(gemms)]
        gemm()
        return gemm.result() if i == CHECK else x

    return call, len(data)


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
    got = call(CHECK).double()
    error = float((got - expected.double()).norm() / expected.double().norm())
    if not error <= tolerance:
        raise SystemExit(f"{name}: relative error {error:.3g} exceeds {tolerance}")


def reader(nbytes: int, empty: Callable[[int], torch.Tensor]) -> tuple[Call, int]:
    memory = [empty(nbytes).random_() for _ in range(max(2, CACHE_BYTES // nbytes))]
    lib = library.load()

    def call(i: int) -> torch.Tensor:
        lib.vqp_read(memory[i % len(memory)].data_ptr(), nbytes, torch.get_num_threads())
        return memory[0]

    return call, nbytes


def candidates(n: int, k: int, m: int, every: bool, folder: Path | None) -> dict[str, tuple[Call, int]]:
    x = torch.randn(m, k).bfloat16()
    found: dict[str, tuple[Call, int]] = {}
    w4 = weight(n, k, 4)
    expected = reference.wna16_linear(x, w4, wide=torch.float32)
    weights = {"W4": w4}
    if every and m == 1:
        weights = {f"W{bits}": weight(n, k, bits) for bits in (2, 3, 5, 6, 7, 8)}
        weights |= {"W4": w4, "W4 zeros": weight(n, k, 4, True), "FP8": weight(n, k, 8, kind="fp8_e4m3")}
    for name, w in weights.items():
        found[name] = ours(w, x)
        check(name, found[name][0], expected if w is w4 else reference.wna16_linear(x, w, wide=torch.float32), 0.01)
    found["W4A8"] = ours(w4, x, linear_a8)
    check("W4A8", found["W4A8"][0], expected, 0.02)
    # llama.cpp quantizes weights and activations itself.
    peers: list[tuple[str, Callable[[], tuple[Call, int]], float]] = [
        ("in-tree W4", lambda: in_tree_w4(w4, x), 0.02),
        ("torch BF16", lambda: torch_bf16(w4, x), 0.02),
        (LLAMA, lambda: llama_cpp(w4, x, folder), 0.1),
    ]
    for name, make, tolerance in peers:
        try:
            found[name] = make()
        except (ImportError, AttributeError, OSError, RuntimeError) as error:
            Console().print(f"{name} cannot run: {error}")
            continue
        check(name, found[name][0], expected, tolerance)
    if every:
        found |= int8_pair(n, k, x)
    if m == 1:
        found["read"] = reader(found["W4"][1], lambda nbytes: torch.empty(nbytes, dtype=torch.uint8))
        found["read, pages of 2 MB"] = reader(found["W4"][1], huge_pages.empty_bytes)
    return found


def measure(
    shape: str, m: int, threads: int, rounds: int, found: dict[str, tuple[Call, int]], folder: Path | None
) -> list[Result]:
    torch.set_num_threads(threads)
    if LLAMA in found:
        ggml(folder).set_threads(threads)
    clock = time.thread_time if threads == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in found}
    for i in range(rounds + 1):
        for name, (call, _) in found.items():
            alone = name == LLAMA and threads > 1
            if alone:
                time.sleep(0.02)  # until the threads of PyTorch's pool have gone to sleep
                call(i)
            start = clock()
            call(i + 1)
            times[name].append(clock() - start)
            if alone:
                time.sleep(0.02)
    return [
        Result(shape, threads, m, name, nbytes, min(t[1:]) * 1e6, statistics.median(t[1:]) * 1e6)
        for (name, (_, nbytes)), t in zip(found.items(), times.values(), strict=True)
    ]


def show(console: Console, results: list[Result]) -> None:
    best = {r.name: r.best_us for r in results}
    first = results[0]
    table = Table(title=f"{first.shape}, M = {first.m}, {first.threads} thread(s)")
    for column in ("", "MB", "minimum us", "median us", "GB/s", "W4 is faster by"):
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
    parser.add_argument("--goals", action="store_true", help="one shape only, and the table of goals as Markdown")
    parser.add_argument("--ggml", type=Path, help="folder of libggml-cpu.so; by default that of llama-cpp-python")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    console = Console()
    results: list[Result] = []
    machine = {"level": library.level(), "cpus": os.cpu_count(), "load_before": os.getloadavg()[0]}
    console.print(f"level {machine['level']}, load average {machine['load_before']:.1f}, {machine['cpus']} CPUs")
    cases = [(cpu_goals.SHAPE, 14336, 4096, m, True) for m in (1, 8, 512)]
    if not options.quick and not options.goals:
        for model, layers in (("Llama-3-8B", LLAMA3_8B), ("Qwen3-0.6B", QWEN3_06B)):
            cases += [(f"{model} {name}", n, k, m, False) for name, n, k in layers for m in (1, 8)]
    for shape, n, k, m, every in cases:
        torch.set_num_threads(max(options.threads))
        found = candidates(n, k, m, every, options.ggml)
        for threads in options.threads:
            rounds = options.rounds if m < 64 else max(3, options.rounds // 8)
            results += measure(shape, m, threads, rounds, found, options.ggml)
            show(console, [r for r in results if (r.shape, r.m, r.threads) == (shape, m, threads)])
    report = {"machine": machine, "results": [dataclasses.asdict(r) for r in results]}
    if options.goals:
        print(cpu_goals.render(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
