"""One peer on the GPU, in this process: whether its kernel returns, and how far from fp64 it is.

    python benchmarks/gpu_probe.py NAME [--peers-library FILE]    one probe; a line per step, so that a hang shows where
    python benchmarks/gpu_probe.py --list                         all names

A kernel that hangs or faults takes its process with it: ``scripts/gpu_check.py`` runs each probe in its own, with a
time limit, and leaves out of the benchmarks what does not return. Our own kernels: ``scripts/gpu_families.py``.
"""

from __future__ import annotations

import argparse
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


def step(text: str) -> None:
    print(f"{time.monotonic() - BEGIN:7.2f} s  {text}", flush=True)


def check(y: torch.Tensor, exact: torch.Tensor, tolerance: float) -> None:
    error = float((y.double() - exact).norm() / exact.norm())
    step(f"called: relative error {error:.3g}")
    if not error <= tolerance:
        raise SystemExit(f"wrong: relative error {error:.3g} exceeds {tolerance}")


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
    check(run(x), exact, peer.tolerance)
    for _ in range(10):
        run(x)
    torch.cuda.synchronize()
    step("ten calls in a row")
    graph = gpu_linear.capture([run] * 8, x)
    graph.replay()
    torch.cuda.synchronize()
    step("a graph of eight calls")


PROBES: dict[str, Callable[[], None]] = {
    f"{peer}-m{m}": lambda peer=peer, m=m: weight_only(peer, m, 4)
    for peer in ("marlin", "machete", "humming")
    for m in (1, 256)
}


def main() -> int:
    if sys.argv[1:] == ["--list"]:
        print("\n".join(PROBES))
        return 0
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=PROBES, metavar="NAME")
    parser.add_argument("--peers-library", metavar="FILE", help="vLLM's extension library, where vLLM is not installed")
    arguments = parser.parse_args()
    import gpu_peers

    gpu_peers.load(arguments.peers_library)
    step(f"{arguments.name} on {torch.cuda.get_device_name()}")
    PROBES[arguments.name]()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
