"""Mixture-of-experts layers on one GPU, peers side by side in one run. Needs torch; peers are optional.

    python benchmarks/gpu_experts.py [--seconds N] [--json FILE]

W4A16 in groups of 128, BF16 activations. The protocol is that of gpu_linear.py: enough distinct copies of the layer for
a cold L2 in each call, one CUDA graph through all of them, implementations in turns, each checked against fp64 before
it is timed, medians. A call is the whole layer behind the router: w13, SiLU, w2, the weighted sum. Writes
benchmarks/results/<gpu>-<date>-experts.json unless --json names another file, again after every case;
benchmarks/gpu_render.py renders it into docs/results/performance.md.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "kernels"))  # where the package is not installed
sys.path.append(str(ROOT / "benchmarks"))

import gpu_experts_peers  # noqa: E402
import gpu_linear  # noqa: E402
from gpu_experts_peers import Mixture, activate  # noqa: E402

from vllm_quant_kernels.canonical import CanonicalWeight  # noqa: E402

BITS, GROUP = 4, 128


@dataclass(frozen=True)
class Case:
    """``m`` tokens through a layer of ``experts``: hidden size H, inner size I, ``top_k`` experts per token."""

    model: str
    m: int
    hidden: int
    inner: int
    experts: int
    top_k: int

    @property
    def name(self) -> str:
        return f"{self.model}-{self.m}"

    @property
    def expert_bytes(self) -> int:
        """Codes and FP16 scales of one expert's three matrices."""
        weights = 3 * self.hidden * self.inner
        return weights * BITS // 8 + weights // GROUP * 2

    @property
    def flops(self) -> int:
        return 2 * self.m * self.top_k * 3 * self.hidden * self.inner

    def bytes(self, used: int) -> int:
        """Weights of the ``used`` experts, and activations once in and out of each GEMM."""
        pairs = self.m * self.top_k
        return used * self.expert_bytes + 2 * (2 * self.m * self.hidden + pairs * (4 * self.inner + 2 * self.hidden))


MODELS = {"mixtral-8x7b": (4096, 14336, 8, 2), "qwen3-30b-a3b": (2048, 768, 128, 8)}


def cases() -> Iterator[Case]:
    for model, sizes in MODELS.items():
        for m in (1, 8, 64, 512):
            yield Case(model, m, *sizes)


def random_weights(count: int, n: int, k: int, device: str, seed: int) -> list[CanonicalWeight]:
    generator = torch.Generator(device).manual_seed(seed)
    weights = []
    for _ in range(count):
        codes = torch.randint(0, 1 << BITS, (n, k), generator=generator, device=device, dtype=torch.uint8)
        scales = (torch.rand(n, -(-k // GROUP), generator=generator, device=device) + 0.5) / 8 / k**0.5
        weights.append(CanonicalWeight(codes, scales.half(), BITS, GROUP, None))
    return weights


def random_mixture(case: Case, device: str, seed: int = 0) -> Mixture:
    """Uniform routing: every token chooses its experts independently."""
    generator = torch.Generator(device).manual_seed(seed)
    scores = torch.rand(case.m, case.experts, generator=generator, device=device)
    weights, ids = scores.topk(case.top_k)
    return Mixture(
        random_weights(case.experts, 2 * case.inner, case.hidden, device, 2 * seed),
        random_weights(case.experts, case.hidden, case.inner, device, 2 * seed + 1),
        ids.int(),
        weights.softmax(-1),
    )


def exact(mixture: Mixture, x: torch.Tensor) -> torch.Tensor:
    """float64 (M, H), expert by expert on the dequantized weights."""
    out, top_k = torch.zeros(x.shape, dtype=torch.float64, device=x.device), mixture.ids.shape[1]
    for expert in mixture.ids.unique().tolist():
        pairs = mixture.pairs_of(expert)
        hidden = activate(x[pairs // top_k].double() @ mixture.w13[expert].dequantize(torch.float64).T)
        y = hidden @ mixture.w2[expert].dequantize(torch.float64).T
        out.index_add_(0, pairs // top_k, y * mixture.weights.double().flatten()[pairs, None])
    return out


def checked(
    peer: gpu_experts_peers.Peer, mixture: Mixture, copies: int, x: torch.Tensor, expected: torch.Tensor
) -> tuple[list[gpu_experts_peers.Runner], float]:
    """The copies and the first one's relative error. Raises what the peer raises, or ValueError for a wrong result
    of the first or the last copy."""
    runners = peer.copies(mixture, copies, x.dtype)
    errors = [float((run(x).double() - expected).norm() / expected.norm()) for run in (runners[0], runners[-1])]
    if not max(errors) <= peer.tolerance:
        raise ValueError(f"relative error {max(errors):.3g} exceeds {peer.tolerance}")
    return runners, errors[0]


def copies_for(used_bytes: int, l2: int) -> int:
    """Enough copies that four L2 sizes are read between two calls of the same one."""
    return max(2, 1 - (-4 * l2 // used_bytes))


def measure(case: Case, bandwidth: float, repeats: int) -> dict[str, Any]:
    """All implementations in one case, in turns."""
    mixture = random_mixture(case, "cuda")
    generator = torch.Generator("cuda").manual_seed(7)
    x = torch.randn(case.m, case.hidden, generator=generator, device="cuda").bfloat16()
    expected, used = exact(mixture, x), int(mixture.ids.unique().numel())
    copies = copies_for(used * case.expert_bytes, torch.cuda.get_device_properties(0).L2_cache_size)
    ready: dict[str, gpu_linear.Timed] = {}
    absent: dict[str, str] = {}
    for peer in gpu_experts_peers.PEERS:
        try:
            runners, error = checked(peer, mixture, copies, x, expected)
            ready[peer.name] = gpu_linear.Timed(gpu_linear.capture(runners, x), copies, error)
        except Exception as error:
            absent[peer.name] = f"{type(error).__name__}: {error}".splitlines()[0]
    results = gpu_linear.time_in_turns(ready, case.bytes(used), case.flops, repeats, bandwidth)
    head = {"case": case.name, **asdict(case), "bits": BITS, "group_size": GROUP, "experts_used": used}
    return {**head, "copies": copies, "results": results, "absent": absent}


def main() -> int:
    arguments = gpu_linear.options(__doc__, repeats=20).parse_args()
    if gpu_linear.no_gpu("gpu_experts"):
        return 69
    end, result = time.monotonic() + arguments.seconds, gpu_linear.machine()
    target = arguments.json or gpu_linear.result_file("-experts")
    gpu_linear.measure_all(
        cases(), lambda case: measure(case, result["copy_bandwidth"], arguments.repeats), result, target, end
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
