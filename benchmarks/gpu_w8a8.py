"""W8A8 GEMM and activation quantization on one GPU, peers side by side in one run. Needs torch only.

    python benchmarks/gpu_w8a8.py [--quick] [--json FILE]
    python benchmarks/gpu_w8a8.py --render FILE [--write docs/results/performance.md]

The protocol is that of gpu_linear.py: copies of the weight that exceed the L2 four times, one CUDA graph through all of
them, implementations in turns, each checked before it is timed. `linear` is timed with the quantization of BF16
activations, `gemm` on codes. Writes benchmarks/results/<gpu>-<date>-w8a8.json, and prints the table for
kernels/vllm_quant_kernels/cuda/w8a8/choice.py that the run suggests.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "kernels"))  # where the package is not installed
sys.path.append(str(ROOT / "benchmarks"))

import gpu_linear  # noqa: E402
import gpu_w8a8_peers  # noqa: E402

from vllm_quant_kernels.cuda.w8a8 import activation  # noqa: E402
from vllm_quant_kernels.cuda.w8a8.activation import FP8, INT8, Activations  # noqa: E402
from vllm_quant_kernels.cuda.w8a8.choice import BACKENDS, CUBLASLT_ROWS, FUSED_ROWS  # noqa: E402
from vllm_quant_kernels.cuda.w8a8.weight import WeightW8A8, product  # noqa: E402

BEGIN, END = "<!-- gpu w8a8: begin -->", "<!-- gpu w8a8: end -->"
TOLERANCE = 1e-2
NAMES = {f"vqp-{backend}": backend for backend in BACKENDS}


@dataclass(frozen=True)
class Case:
    """y (m, n) = x (m, k) W^T; ``mode`` linear: quantization included."""

    kind: str
    mode: str
    m: int
    n: int
    k: int

    @property
    def bytes(self) -> int:
        return self.n * self.k + self.m * (self.k * (2 if self.mode == "linear" else 1) + 2 * self.n)


def cases(quick: bool) -> Iterator[Case]:
    shapes = {(8192, 8192)} | (set() if quick else {shape for shape in gpu_linear.LLAMA.values()})
    for kind in ("fp8", "int8"):
        for n, k in sorted(shapes):
            for m in (1, 8, 16, 32, 64):
                yield Case(kind, "linear", m, n, k)
            for m in (2048, 8192) if not quick else (2048,):
                yield Case(kind, "gemm", m, n, k)
        for m in (17, 48, 96, 128, 192, 256, 512, 1024, 4096):
            yield Case(kind, "linear", m, 8192, 8192)
    for m in (64, 256, 1024, 4096):
        yield Case("fp8-blocks", "gemm", m, 8192, 8192)
    for m in (1, 16, 64, 128, 256, 1024, 4096):
        yield Case("fp8-blocks", "linear", m, 8192, 8192)


def random_weight(case: Case, seed: int) -> WeightW8A8:
    generator = torch.Generator("cuda").manual_seed(seed)
    codes = torch.randint(0, 256, (case.n, case.k), generator=generator, device="cuda", dtype=torch.uint8)
    shape = (-(-case.n // 128), -(-case.k // 128)) if case.kind == "fp8-blocks" else (case.n,)
    scales = (torch.rand(shape, generator=generator, device="cuda") + 0.5) / 64
    if case.kind == "int8":
        signed = codes.view(torch.int8)
        return WeightW8A8(signed, scales, signed.sum(1, dtype=torch.int32), INT8, case.n, case.k)
    codes = torch.where((codes & 0x7F) == 0x7F, codes ^ 1, codes)
    return WeightW8A8(codes.view(torch.float8_e4m3fn), scales, None, FP8, case.n, case.k)


def expected_of(a: Activations, w: WeightW8A8) -> torch.Tensor:
    return product(a, w, None).double()


def measure(case: Case, bandwidth: float, repeats: int) -> dict[str, Any]:
    """All implementations in one case, in turns."""
    l2 = torch.cuda.get_device_properties(0).L2_cache_size
    copies = min(64, max(4 if case.m > 1024 else 8, -(-4 * l2 // (case.n * case.k))))
    weights = [random_weight(case, seed) for seed in range(copies)]
    x = torch.randn(case.m, case.k, device="cuda", generator=torch.Generator("cuda").manual_seed(7)).bfloat16()
    a = activation.quantize(x, weights[0].kind, group=128 if weights[0].blocks else 0)
    exact = expected_of(a, weights[0])
    ready: dict[str, gpu_linear.Timed] = {}
    absent: dict[str, str] = {}
    for peer in gpu_w8a8_peers.PEERS:
        try:
            if case.kind not in peer.kinds or peer.name in gpu_linear.WITHOUT:
                continue
            runs = [peer.build(w, x, a if case.mode == "gemm" else None) for w in weights]
            error = float((runs[0]().double() - exact).norm() / exact.norm())
            tolerance = 0.1 if peer.name == "torch-bf16" else TOLERANCE  # it rounds no activations to 8 bits
            if not error <= tolerance:
                raise ValueError(f"relative error {error:.3g} exceeds {tolerance}")
            graph = gpu_linear.capture([lambda _, run=run: run() for run in runs], x)
            ready[peer.name] = gpu_linear.Timed(graph, len(runs), error)
        except Exception as error:
            absent[peer.name] = f"{type(error).__name__}: {error}".splitlines()[0]
    results = gpu_linear.time_in_turns(ready, case.bytes, 2 * case.m * case.n * case.k, repeats, bandwidth)
    return {**asdict(case), "copies": copies, "results": results, "absent": absent}


def quantization(bandwidth: float) -> list[dict[str, Any]]:
    """Activation quantization alone: microseconds, and bytes read and written per second over the copy bandwidth."""
    from vllm_quant_kernels.cuda.w8a8.quantize import quantize_cuda

    schemes: dict[str, dict[str, Any]] = {
        "int8": {"kind": INT8},
        "int8-asymmetric": {"kind": INT8, "symmetric": False},
        "fp8": {"kind": FP8},
        "fp8-groups": {"kind": FP8, "group": 128},
    }
    rows = []
    for k in (2048, 4096, 8192, 14336, 28672):
        m = (256 << 20) // (2 * k)  # 256 MB, beyond the L2
        x = torch.randn(m, k, device="cuda").bfloat16()
        for name, options in schemes.items():
            seconds = gpu_linear.median_seconds(lambda x=x, options=options: quantize_cuda(x, **options))
            results = {"vqp": seconds}
            try:
                from vllm import _custom_ops as ops

                peers = {"int8": lambda x=x: ops.scaled_int8_quant(x),
                         "int8-asymmetric": lambda x=x: ops.scaled_int8_quant(x, symmetric=False),
                         "fp8": lambda x=x: ops.scaled_fp8_quant(x, use_per_token_if_dynamic=True)}  # fmt: skip
                if name in peers:
                    results["vllm"] = gpu_linear.median_seconds(peers[name])
            except Exception as error:
                print(f"quantization: vLLM is absent: {type(error).__name__}: {error}".splitlines()[0])
            shares = {peer: 3 * m * k / s / bandwidth for peer, s in results.items()}
            rows.append(
                {"scheme": name, "m": m, "k": k, "us": {p: s * 1e6 for p, s in results.items()}, "share": shares}
            )
    return rows


def suggested_table(rows: list[dict[str, Any]]) -> dict[str, list[tuple[int, str]]]:
    """The fastest of our implementations by kind and M: lowest geometric mean over the shapes, with quantization."""
    times: dict[tuple[str, int], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["mode"] != "linear":
            continue
        for name, backend in NAMES.items():
            if name in row["results"]:
                times[row["kind"], row["m"]][backend].append(math.log(row["results"][name]["us"]))
    table: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for (kind, m), found in sorted(times.items()):
        most = max(len(t) for t in found.values())
        complete = {name: statistics.mean(t) for name, t in found.items() if len(t) == most}
        best = min(complete, key=complete.__getitem__)
        if table[kind] and table[kind][-1][1] == best:
            table[kind].pop()
        table[kind].append((m, best))
    return dict(table)


def render(result: dict[str, Any]) -> str:
    """The results as Markdown tables."""
    lines = [
        f"{result['gpu']}, torch {result['torch']}, {result['date']}; copy {result['copy_bandwidth'] / 1e12:.2f} TB/s, "
        f"dense BF16 {result['dense_bf16_rate'] / 1e12:.0f} TFLOP/s. Microseconds a call (TFLOP/s).",
        "",
        "| weights | timed | M | N x K | vqp | best peer | vqp / peer |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["cases"]:
        ours = row["results"].get("vqp")
        peers = {n: r for n, r in row["results"].items() if not n.startswith("vqp")}
        if ours is None or not peers:
            continue
        best = min(peers, key=lambda n: peers[n]["us"])
        lines.append(
            f"| {row['kind']} | {row['mode']} | {row['m']} | {row['n']} x {row['k']} "
            f"| {ours['us']:.1f} ({ours['tflops']:.0f}) | {peers[best]['us']:.1f} ({best}) "
            f"| {peers[best]['us'] / ours['us']:.2f}x |"
        )
    lines += ["", "| quantization | K | vqp, share of copy | vLLM |", "|---|---|---|---|"]
    for row in result["quantization"]:
        peer = f"{row['share']['vllm']:.0%}" if "vllm" in row["share"] else "absent"
        lines.append(f"| {row['scheme']} | {row['k']} | {row['share']['vqp']:.0%} | {peer} |")
    return "\n".join(lines)


def write_between(document: str, text: str) -> str:
    """``document`` with ``text`` between the two marker lines. Raises ValueError without them."""
    head, begin, rest = document.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no lines {BEGIN} and {END}")
    return f"{head}{BEGIN}\n{text}\n{END}{tail}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one shape instead of the Llama layers")
    parser.add_argument("--json", type=Path, help="where to write the results")
    parser.add_argument("--repeats", type=int, default=20, help="replays of each implementation")
    parser.add_argument("--peers-library", metavar="FILE", help="vLLM's extension library, where vLLM is not installed")
    parser.add_argument("--without", default="", metavar="NAMES", help="implementations to leave out, with commas")
    parser.add_argument("--render", type=Path, help="render the results in this file, measure nothing")
    parser.add_argument("--write", type=Path, help="with --render: into this file, between its markers")
    arguments = parser.parse_args()
    if arguments.render:
        text = render(json.loads(arguments.render.read_text()))
        if arguments.write:
            arguments.write.write_text(write_between(arguments.write.read_text(), text))
        else:
            print(text)
        return 0
    if not torch.cuda.is_available():
        print("gpu_w8a8: no NVIDIA GPU here: nothing was measured", file=sys.stderr)
        return 69
    gpu_linear.prepare_peers(arguments)
    result = gpu_linear.machine()
    bandwidth, target = result["copy_bandwidth"], arguments.json or gpu_linear.result_file("-w8a8")
    quantized = quantization(bandwidth)
    for row in quantized:
        print(
            f"quantize {row['scheme']:16} K {row['k']:6}: " + ", ".join(f"{p} {s:.0%}" for p, s in row["share"].items())
        )
    rows: list[dict[str, Any]] = []
    for case in cases(arguments.quick):
        rows.append(measure(case, bandwidth, arguments.repeats))
        gpu_linear.write_results(target, {**result, "cases": rows, "quantization": quantized})  # what there is so far
        label = f"{case.kind} {case.mode} {case.m} x {case.n} x {case.k}"
        print(gpu_linear.report({"case": label, "results": rows[-1]["results"]}), flush=True)
        torch.cuda.empty_cache()
    for peer, reason in {peer: reason for row in rows for peer, reason in row["absent"].items()}.items():
        print(f"absent in some or all cases: {peer}: {reason}")
    print(f"measured choice (fused up to {FUSED_ROWS} rows, torch from {CUBLASLT_ROWS}), largest M and implementation:")
    for kind, entries in suggested_table(rows).items():
        lines = [(limit if i + 1 < len(entries) else None, (best,)) for i, (limit, best) in enumerate(entries)]
        print(f"    {kind!r}: {tuple(lines)!r},")
    print(f"written to {target}; render it with --render {target} --write docs/results/performance.md")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
