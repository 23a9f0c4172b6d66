"""Batch-invariant 4-bit layers: this plugin's kernels beside vLLM 0.33's way, on the CPU.

With VLLM_BATCH_INVARIANT=1, vLLM 0.33 unpacks and dequantizes the whole weight in each call and multiplies by it
(compressed_tensors_wNa16.py); here with torch's GEMM, which is at least as fast as its batch-invariant one. Ours read
the packed codes; rows of a small batch are padded to the kernel that large batches use.

    python benchmarks/batch_invariance.py [--n 4096] [--k 4096] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

os.environ["VLLM_BATCH_INVARIANT"] = "1"

import torch
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

from vllm_quant_kernels.canonical import CanonicalWeight
from vllm_quant_kernels.cpu import library
from vllm_quant_kernels.cpu.ops import linear
from vllm_quant_kernels.cpu.pack import pack
from vllm_quant_kernels.packing import pack_dense

GROUP, BITS, REPEATS = 128, 4, 9


def dequantizing(words: torch.Tensor, scales: torch.Tensor, n: int, k: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """What vLLM 0.33 does for a symmetric weight: codes around zero, times scales, then the GEMM."""

    def call(x: torch.Tensor) -> torch.Tensor:
        weight = unpack_from_int32(words, BITS, torch.Size((n, k))).to(scales.dtype).reshape(n, k // GROUP, -1)
        return x @ (weight * scales.unsqueeze(-1)).reshape(n, k).t().to(x.dtype)

    return call


def milliseconds(call: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> float:
    """The median of a few calls."""
    call(x)
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call(x)
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=4096)
    parser.add_argument("--k", type=int, default=4096)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    n, k = options.n, options.k
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 1 << BITS, (n, k), dtype=torch.uint8, generator=generator)
    scales = (torch.rand(n, k // GROUP, generator=generator) / 64).bfloat16()
    packed = pack(CanonicalWeight(codes, scales, BITS, GROUP))
    theirs = dequantizing(pack_dense(codes, BITS), scales, n, k)
    rows = []
    print(f"{n} x {k}, 4 bits, groups of {GROUP}, BF16, {torch.get_num_threads()} threads, {library.level()}")
    print(f"{'rows':>6} {'ours ms':>10} {'dequantize ms':>14} {'ratio':>7}")
    for m in (1, 4, 16, 64, 256):
        x = torch.randn(m, k, generator=generator).bfloat16()
        assert torch.allclose(
            linear(x, packed).float(), theirs(x).float(), rtol=0.05, atol=0.05 * float(scales.max()) * k**0.5
        )
        ours, other = milliseconds(lambda part: linear(part, packed), x), milliseconds(theirs, x)
        rows.append({"rows": m, "ours_ms": ours, "dequantize_ms": other, "ratio": other / ours})
        print(f"{m:6} {ours:10.2f} {other:14.2f} {other / ours:7.1f}")
    if options.json:
        options.json.write_text(
            json.dumps({"n": n, "k": k, "level": library.level(), "results": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
