"""Weight-only linear layers on one GPU, peers side by side in one run. Needs torch; peers are optional.

    python benchmarks/gpu_linear.py [--quick | --layers] [--seconds N] [--json FILE]

Protocol: the copy bandwidth and the dense BF16 rate are measured first, in the same run. Every case holds
enough distinct copies of its weight to exceed the L2 four times, and one CUDA graph runs through all of
them, so each call meets a cold L2; the time is the median over replays divided by the calls in the graph.
Implementations take turns, replay by replay, and each is checked against the dequantized weight before it
is timed. A peer that cannot run is named in the report with the reason.
Writes benchmarks/results/<gpu>-<date>.json unless --json names another file, again after every case;
benchmarks/gpu_render.py renders it into docs/results/performance.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "kernels"))  # where the package is not installed

import gpu_peers  # noqa: E402

from vllm_quant_kernels.canonical import CanonicalWeight  # noqa: E402

Runner = Callable[[torch.Tensor], torch.Tensor]
# Names of implementations that are not run (--without).
WITHOUT: set[str] = set()


@dataclass(frozen=True)
class Case:
    """One shape: y (m, n) = x (m, k) times a weight of ``bits`` with groups of ``group_size``."""

    name: str
    m: int
    n: int
    k: int
    bits: int = 4
    group_size: int = 128
    zeros: bool = False

    @property
    def weight_bytes(self) -> int:
        """Codes, FP16 scales and 8-bit zero points: what a kernel must read of the weight."""
        return self.n * self.k * self.bits // 8 + self.n * (self.k // self.group_size) * (3 if self.zeros else 2)

    @property
    def bytes(self) -> int:
        return self.weight_bytes + 2 * self.m * (self.n + self.k)


# Hidden sizes of Llama-3: fused qkv, attention output, fused gate and up, down; (n, k) per rank.
def llama(prefix: str, hidden: int, kv: int, inner: int, ranks: int) -> dict[str, tuple[int, int]]:
    return {
        f"{prefix}-tp{ranks}-qkv": ((hidden + 2 * kv) // ranks, hidden),
        f"{prefix}-tp{ranks}-o": (hidden, hidden // ranks),
        f"{prefix}-tp{ranks}-gate-up": (2 * inner // ranks, hidden),
        f"{prefix}-tp{ranks}-down": (hidden, inner // ranks),
    }


LLAMA = {
    **llama("llama3-8b", 4096, 1024, 14336, 1),
    **llama("llama3-8b", 4096, 1024, 14336, 4),
    **llama("llama3-70b", 8192, 1024, 28672, 1),
    **llama("llama3-70b", 8192, 1024, 28672, 4),
}


def cases() -> Iterator[Case]:
    """The goals' shapes."""
    for m in (1, 4, 8, 16, 32, 64):
        yield Case(f"square-{m}", m, 8192, 8192)
    yield Case("wide-1", 1, 28672, 8192)
    for bits in (2, 3, 5, 6, 8):
        yield Case(f"wide-1-w{bits}", 1, 28672, 8192, bits)
    yield Case("wide-1-zeros", 1, 28672, 8192, zeros=True)
    for m in (256, 2048, 4096):
        yield Case(f"square-{m}", m, 8192, 8192)
    for bits in (4, 8):
        yield Case(f"square-4096-w{bits}-channel", 4096, 8192, 8192, bits, group_size=8192)


def layers() -> Iterator[Case]:
    for name, (n, k) in LLAMA.items():
        for m in (1, 8, 32):
            yield Case(f"{name}-{m}", m, n, k)


def random_weight(case: Case, seed: int) -> CanonicalWeight:
    generator = torch.Generator("cuda").manual_seed(seed)
    groups = case.k // case.group_size
    codes = torch.randint(0, 1 << case.bits, (case.n, case.k), generator=generator, device="cuda", dtype=torch.uint8)
    scales = ((torch.rand(case.n, groups, generator=generator, device="cuda") + 0.5) / 64).half()
    zeros = None
    if case.zeros:
        zeros = torch.randint(0, 1 << case.bits, scales.shape, generator=generator, device="cuda", dtype=torch.uint8)
    return CanonicalWeight(codes, scales, case.bits, case.group_size, zeros)


@dataclass
class Timed:
    """One implementation in one case, as a CUDA graph over all copies of the weight."""

    graph: torch.cuda.CUDAGraph
    calls: int
    error: float
    times: list[float] = field(default_factory=list)  # microseconds a call

    def replay(self) -> None:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        self.graph.replay()
        end.record()
        end.synchronize()
        self.times.append(start.elapsed_time(end) * 1e3 / self.calls)


def capture(runners: list[Runner], x: torch.Tensor) -> torch.cuda.CUDAGraph:
    for run in runners[:2]:
        run(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for run in runners:
            run(x)
    return graph


def prepare(peer: gpu_peers.Peer, weights: list[CanonicalWeight], x: torch.Tensor, exact: torch.Tensor) -> Timed:
    """Build, check and capture. Raises whatever the peer raises, or ValueError when its result is wrong."""
    runners = [peer.build(weight, x.dtype) for weight in weights]
    y = runners[0](x).double()
    error = float((y - exact).norm() / exact.norm())
    if not error <= peer.tolerance:
        raise ValueError(f"relative error {error:.3g} exceeds {peer.tolerance}")
    return Timed(capture(runners, x), len(runners), error)


def copy_bandwidth() -> float:
    """Bytes read and written per second by a device-to-device copy of 4 GiB."""
    source = torch.empty(4 << 30, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    return 2 * source.numel() / median_seconds(lambda: target.copy_(source))


def dense_rate() -> float:
    """Operations per second of a BF16 GEMM of 8192 x 8192 x 8192 on random data."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * 8192**3 / median_seconds(lambda: a @ b)


def median_seconds(work: Callable[[], Any], repeats: int = 15) -> float:
    for _ in range(3):
        work()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times)


def time_in_turns(
    ready: dict[str, Timed], nbytes: int, flops: int, repeats: int, bandwidth: float
) -> dict[str, dict[str, float]]:
    """Microseconds and rates by name; ``nbytes`` and ``flops`` are of one GEMM, ``bandwidth`` is in bytes per second.

    The first one alternates, so that a clock drift favours none.
    """
    for turn in range(repeats):
        order = list(ready.values())
        for timed in order if turn % 2 else reversed(order):
            timed.replay()
    results = {}
    for name, timed in ready.items():
        median = statistics.median(timed.times)
        results[name] = {
            "us": median,
            "us_low": min(timed.times),
            "us_high": max(timed.times),
            "copy_share": nbytes / (median * 1e-6) / bandwidth,
            "tflops": flops / (median * 1e-6) / 1e12,
            "relative_error": timed.error,
        }
    return results


def measure(case: Case, bandwidth: float, dtype: torch.dtype, repeats: int) -> dict[str, Any]:
    """All implementations in one case, in turns."""
    l2 = torch.cuda.get_device_properties(0).L2_cache_size
    copies = max(8, -(-4 * l2 // case.weight_bytes))
    weights = [random_weight(case, seed) for seed in range(copies)]
    x = torch.randn(case.m, case.k, device="cuda").to(dtype)
    exact = x.double() @ weights[0].dequantize(torch.float64).T
    ready: dict[str, Timed] = {}
    absent: dict[str, str] = {}
    for peer in gpu_peers.PEERS:
        if peer.name in WITHOUT:
            absent[peer.name] = "left out"
            continue
        try:
            peer.check(case.bits, case.zeros)
            ready[peer.name] = prepare(peer, weights, x, exact)
        except Exception as error:
            absent[peer.name] = f"{type(error).__name__}: {error}".splitlines()[0]
    results = time_in_turns(ready, case.bytes, 2 * case.m * case.n * case.k, repeats, bandwidth)
    shape = {"m": case.m, "n": case.n, "k": case.k, "bits": case.bits, "group_size": case.group_size}
    return {"case": case.name, **shape, "zeros": case.zeros, "copies": copies, "results": results, "absent": absent}


def measure_all(
    chosen: Iterable[Any],
    measure_one: Callable[[Any], dict[str, Any]],
    result: dict[str, Any],
    target: Path,
    end: float,
) -> None:
    """Fill ``result["cases"]``, and write it after each, until the time ``end``. A failure is reported in its row."""
    result["cases"] = []
    for case in chosen:
        if time.monotonic() > end:
            print(f"no time left: {case.name} and the following cases are not measured")
            break
        try:
            row = measure_one(case)
        except RuntimeError as error:
            row = {"case": case.name, "results": {}, "absent": {}, "error": str(error).splitlines()[0]}
        result["cases"].append(row)
        print(report(row), flush=True)
        write_results(target, result)
        torch.cuda.empty_cache()
    absent = {peer: reason for row in result["cases"] for peer, reason in row["absent"].items()}
    for peer, reason in absent.items():
        print(f"absent in some or all cases: {peer}: {reason}")
    print(f"written to {target}")


def result_file(suffix: str = "") -> Path:
    """The file for the results of this GPU and day."""
    slug = torch.cuda.get_device_name().lower().replace("nvidia", "").strip().replace(" ", "-")
    return ROOT / "benchmarks" / "results" / f"{slug}-{datetime.date.today()}{suffix}.json"


def write_results(target: Path, result: dict[str, Any]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(f".{os.getpid()}.tmp")
    partial.write_text(json.dumps(result, indent=1) + "\n")
    partial.replace(target)


def machine() -> dict[str, Any]:
    """The head of a result: the GPU, and the two ceilings measured in this run."""
    bandwidth, rate, name = copy_bandwidth(), dense_rate(), torch.cuda.get_device_name()
    torch.cuda.empty_cache()
    print(f"{name}: copy {bandwidth / 1e12:.2f} TB/s, dense BF16 {rate / 1e12:.0f} TFLOP/s", flush=True)
    head = {"gpu": name, "torch": torch.__version__, "date": str(datetime.date.today())}
    return {**head, "copy_bandwidth": bandwidth, "dense_bf16_rate": rate}


def report(row: dict[str, Any]) -> str:
    parts = [f"{row['case']:24}"] + ([row["error"]] if "error" in row else [])
    for name, result in row["results"].items():
        parts.append(f"{name} {result['us']:.1f} us ({result['copy_share']:.0%} of copy, {result['tflops']:.0f} TF)")
    return " | ".join(parts)


def options(doc: str | None, repeats: int) -> argparse.ArgumentParser:
    """The options that the GPU benchmarks share."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no case after this time")
    parser.add_argument("--json", type=Path, help="where to write the results")
    parser.add_argument("--repeats", type=int, default=repeats, help="replays of each implementation")
    parser.add_argument("--peers-library", metavar="FILE", help="vLLM's extension library, where vLLM is not installed")
    parser.add_argument("--without", default="", metavar="NAMES", help="implementations to leave out, with commas")
    return parser


def prepare_peers(arguments: argparse.Namespace) -> None:
    """What the options of :func:`options` say about peers."""
    gpu_peers.load(arguments.peers_library)
    WITHOUT.update(filter(None, arguments.without.split(",")))


def no_gpu(name: str) -> bool:
    """Whether there is no GPU to measure on; reports it."""
    if torch.cuda.is_available():
        return False
    print(f"{name}: no NVIDIA GPU here: nothing was measured", file=sys.stderr)
    return True


def main() -> int:
    parser = options(__doc__, repeats=20)
    parser.add_argument("--quick", action="store_true", help="without the Llama layers")
    parser.add_argument("--layers", action="store_true", help="the Llama layers alone")
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    arguments = parser.parse_args()
    if no_gpu("gpu_linear"):
        return 69
    prepare_peers(arguments)
    end, dtype = time.monotonic() + arguments.seconds, getattr(torch, arguments.dtype)
    result = {**machine(), "dtype": arguments.dtype}
    chosen = [*([] if arguments.layers else cases()), *([] if arguments.quick else layers())]
    target = arguments.json or result_file("-layers" if arguments.layers else "")
    measure_all(
        chosen, lambda case: measure(case, result["copy_bandwidth"], dtype, arguments.repeats), result, target, end
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
