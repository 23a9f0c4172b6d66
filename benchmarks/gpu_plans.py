"""The quality of the closed-form choice of tile and splits: every legal plan of a few layers beside the chosen one.

    python benchmarks/gpu_plans.py [--seconds N] [--json FILE]

For the calibration of `cost` in kernels/cuda/schedule.h. Protocol as in gpu_linear.py. Prints, for each layer, the
chosen plan's time over the best one's. Writes benchmarks/results/<gpu>-<date>-plans.json unless --json names another
file, again after every case.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "kernels"))  # where the package is not installed
sys.path.append(str(ROOT / "benchmarks"))

import gpu_linear  # noqa: E402
from gpu_linear import LLAMA, Case  # noqa: E402

from vllm_quant_kernels.cuda import native as cuda_native  # noqa: E402
from vllm_quant_kernels.cuda.library import Plan  # noqa: E402
from vllm_quant_kernels.cuda.pack import pack_cuda  # noqa: E402
from vllm_quant_kernels.cuda.weight import PackedCuda  # noqa: E402

MOST_SPLITS, TILE_K = 8, 128


def cases() -> Iterator[Case]:
    for m in (1, 16, 64):
        yield Case(f"square-{m}", m, 8192, 8192)
    yield Case("wide-1", 1, 28672, 8192)
    yield Case("wide-1-w2", 1, 28672, 8192, 2)
    for name in ("llama3-8b-tp1-o", "llama3-8b-tp1-down", "llama3-70b-tp4-qkv", "llama3-70b-tp4-o"):
        for m in (1, 32):
            yield Case(f"{name}-{m}", m, *LLAMA[name])
    for m in (128, 256, 2048):
        yield Case(f"square-{m}", m, 8192, 8192)


def alternatives(m: int, k_padded: int) -> Iterator[tuple[int, int]]:
    """(tokens, splits): tiles from half of M to its double, and 64 and more above that."""
    for tokens in (8, 16, 32, 64, 128, 256):
        if tokens >= min(m, 64) / 2 and (tokens <= 2 * m or tokens == 8):
            for splits in range(1, min(MOST_SPLITS, -(-k_padded // TILE_K)) + 1):
                yield tokens, splits


def with_splits(plan: Plan, splits: int, n: int, clusters: bool) -> Plan:
    """``plan`` with another number of splits, summed as the device does."""
    plan.splits, plan.clustered = splits, int(clusters and splits > 1)
    plan.workspace_bytes = 0 if splits == 1 or plan.clustered else splits * plan.m_tiles * plan.tokens * n * 4
    return plan


def timed(weights: list[PackedCuda], x: torch.Tensor, tokens: int, splits: int) -> gpu_linear.Timed:
    """Raises ValueError where no kernel has this tile for this weight."""
    clusters = torch.cuda.get_device_capability()[0] == 9
    out = torch.empty(x.shape[0], weights[0].n, dtype=x.dtype, device=x.device)
    calls = [cuda_native.describe(x, out, w, None, False) for w in weights]
    plans = [with_splits(cuda_native.plan(call, tokens), splits, weights[0].n, clusters) for call in calls]
    runs = [
        lambda _, call=call, plan=plan: cuda_native.run(call, plan, x.device)
        for call, plan in zip(calls, plans, strict=True)
    ]
    return gpu_linear.Timed(gpu_linear.capture(runs, x), len(runs), 0.0)


def measure(case: Case, bandwidth: float, repeats: int) -> dict[str, Any]:
    l2 = torch.cuda.get_device_properties(0).L2_cache_size
    copies = max(8, -(-4 * l2 // case.weight_bytes))
    weights = [pack_cuda(gpu_linear.random_weight(case, seed)) for seed in range(copies)]
    x = torch.randn(case.m, case.k, device="cuda").bfloat16()
    plan = cuda_native.plan(cuda_native.describe(x, x, weights[0], None, False))
    ready: dict[str, gpu_linear.Timed] = {}
    absent: dict[str, str] = {}
    for tokens, splits in alternatives(case.m, weights[0].k_padded):
        try:
            ready[f"{tokens}x{splits}"] = timed(weights, x, tokens, splits)
        except ValueError as error:
            absent[f"{tokens}x{splits}"] = str(error)
    results = gpu_linear.time_in_turns(ready, case.bytes, 2 * case.m * case.n * case.k, repeats, bandwidth)
    chosen, best = f"{plan.tokens}x{plan.splits}", min(results, key=lambda name: results[name]["us"])
    shape = {"m": case.m, "n": case.n, "k": case.k, "bits": case.bits}
    row = {"case": case.name, **shape, "chosen": chosen, "best": best, "results": results, "absent": absent}
    ratio = results[chosen]["us"] / results[best]["us"]
    print(f"{case.name}: chose {chosen}, {results[chosen]['us']:.1f} us; best {best}, {ratio:.2f}x", flush=True)
    return row


def main() -> int:
    arguments = gpu_linear.options(__doc__, repeats=10).parse_args()
    if gpu_linear.no_gpu("gpu_plans"):
        return 69
    end, result = time.monotonic() + arguments.seconds, gpu_linear.machine()
    target = arguments.json or gpu_linear.result_file("-plans")
    gpu_linear.measure_all(
        cases(), lambda case: measure(case, result["copy_bandwidth"], arguments.repeats), result, target, end
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
