"""One kernel of one implementation on the GPU, in this process: whether it returns, and how far from fp64 it is.

    python benchmarks/gpu_probe.py NAME        one probe; prints a line per step, so that a hang shows where it is
    python benchmarks/gpu_probe.py --list      all names, the most telling first

A kernel that hangs or faults takes its process with it: ``scripts/gpu_check.py`` runs each probe in its own, with a
time limit, and runs one that faulted again under compute-sanitizer, which names the kernel and the instruction.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "kernels"))  # where the package is not installed
sys.path.append(str(ROOT / "benchmarks"))

BEGIN = time.monotonic()
SIZE = 8192
TOLERANCE = 1e-2


def step(text: str) -> None:
    print(f"{time.monotonic() - BEGIN:7.2f} s  {text}", flush=True)


def check(y: torch.Tensor, exact: torch.Tensor) -> None:
    error = float((y.double() - exact).norm() / exact.norm())
    step(f"called: relative error {error:.3g}")
    if not error <= TOLERANCE:
        raise SystemExit(f"wrong: relative error {error:.3g} exceeds {TOLERANCE}")


def weight_only(peer_name: str, m: int, bits: int) -> None:
    """A weight-only GEMM once, ten times in a row, and in a CUDA graph."""
    import gpu_linear
    import gpu_peers

    peer = next(p for p in gpu_peers.PEERS if p.name == peer_name)
    case = gpu_linear.Case("probe", m, SIZE, SIZE, bits)
    weight = gpu_linear.random_weight(case, 1)
    x = torch.randn(m, SIZE, device="cuda").bfloat16()
    exact = x.double() @ weight.dequantize(torch.float64).T
    run = peer.build(weight, torch.bfloat16)
    torch.cuda.synchronize()
    step("packed")
    check(run(x), exact)
    for _ in range(10):
        run(x)
    torch.cuda.synchronize()
    step("ten calls in a row")
    graph = gpu_linear.capture([run] * 8, x)
    graph.replay()
    torch.cuda.synchronize()
    step("a graph of eight calls")


def w8a8(kind: str, backend: str, m: int) -> None:
    """A W8A8 GEMM with the quantization of its activations."""
    import gpu_w8a8

    from vllm_quant_kernels.cuda.w8a8 import activation, native
    from vllm_quant_kernels.cuda.w8a8.quantize import quantize_cuda

    weight = gpu_w8a8.random_weight(gpu_w8a8.Case(kind, "linear", m, SIZE, SIZE), 1)
    x = torch.randn(m, SIZE, device="cuda").bfloat16()
    group = 128 if weight.blocks else 0
    expected = gpu_w8a8.expected_of(activation.quantize(x, weight.kind, group=group), weight)
    torch.cuda.synchronize()
    step("made")
    quantize_cuda(x, kind=weight.kind, group=group)
    torch.cuda.synchronize()
    step("activations quantized by the kernel")
    check(native.linear(x, weight, backend=backend), expected)


PROBES: dict[str, Callable[[], None]] = {
    **{
        f"{peer}-w{bits}-m{m}": lambda peer=peer, m=m, bits=bits: weight_only(peer, m, bits)
        for peer, m, bits in (
            ("vqp-no-pdl", 1, 4), ("vqp", 1, 4), ("vqp", 16, 4), ("vqp", 128, 5), ("vqp", 2048, 4), ("vqp", 2048, 5),
            ("marlin", 1, 4), ("machete", 1, 4),
        )
    },
    **{
        f"{kind}-{backend}-m{m}": lambda kind=kind, backend=backend, m=m: w8a8(kind, backend, m)
        for kind in ("fp8", "int8")
        for backend, m in (("fused", 1), ("own", 1), ("own", 64), ("wgmma", 256))
    },
}  # fmt: skip


def main() -> int:
    if sys.argv[1:] == ["--list"]:
        print("\n".join(PROBES))
        return 0
    if len(sys.argv) != 2 or sys.argv[1] not in PROBES:
        print(f"gpu_probe: give one of {', '.join(PROBES)}", file=sys.stderr)
        return 2
    step(f"{sys.argv[1]} on {torch.cuda.get_device_name()}")
    PROBES[sys.argv[1]]()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
