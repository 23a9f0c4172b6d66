"""Random problems of the checks, and the error that they allow."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vllm_quant_kernels.canonical import CanonicalWeight

EPSILON = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
# Bytes of freed memory that are NaN before a call: what nobody writes shows.
POISON = 32 << 20


class WrongError(Exception):
    """A kernel returned wrong numbers; the message says where."""


class AbsentError(Exception):
    """This GPU or this build of the library has no such kernel."""


@dataclass(frozen=True)
class Place:
    """Where and how thoroughly a family is checked.

    Attributes:
        step: is told what comes next, so that a hang shows where it is.
        large: also sizes in the thousands.
        numbers: how many random problems.
    """

    device: torch.device
    step: Callable[[str], None] = lambda text: None
    large: bool = True
    numbers: int = 12

    @property
    def on_gpu(self) -> bool:
        """Whether there are streams and graphs."""
        return self.device.type == "cuda"

    def poison(self) -> None:
        """Fill freed memory of the GPU with NaN."""
        if self.on_gpu:
            torch.full((POISON // 4,), torch.nan, device=self.device)


def random_weight(
    n: int,
    k: int,
    kind: str = "int4",
    group_size: int | None = 128,
    zeros: str = "none",
    order: str = "none",
    scale_dtype: torch.dtype = torch.float16,
    seed: int = 0,
    device: torch.device | str = "cuda",
) -> CanonicalWeight:
    """A weight whose codes, scales and zero points are all random.

    Args:
        kind: ``int2`` to ``int8``, or ``fp8`` (E4M3, every finite code).
        group_size: None for one scale a channel.
        zeros: none, integer, wide (beyond the codes) or floating.
        order: none, shuffled (act-order), or shard (a row-parallel half of a shuffled weight).
    """
    generator = torch.Generator(device).manual_seed(seed)

    def draw(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=generator, device=device, dtype=torch.uint8)

    bits = 8 if kind == "fp8" else int(kind.removeprefix("int"))
    group_size = k if group_size is None else min(group_size, k)
    groups = -(-k // group_size)
    codes = draw(0, 1 << bits, n, k)
    if kind == "fp8":
        codes = torch.where((codes & 0x7F) == 0x7F, codes ^ 1, codes)  # E4M3's NaN
    scales = ((torch.rand(n, groups, generator=generator, device=device) + 0.5) / 16).to(scale_dtype)
    table = None
    if zeros in ("integer", "wide"):
        table = draw(0, 256 if zeros == "wide" else 1 << bits, n, groups)
    elif zeros == "floating":
        table = torch.rand(n, groups, generator=generator, device=device) * (1 << bits)
    g_idx = None
    if order != "none":
        shuffle = torch.randperm(k, generator=generator, device=device)
        g_idx = (torch.arange(k, device=device) // group_size)[shuffle].int()
        if order == "shard":
            codes, g_idx = codes[:, : (k + 1) // 2].contiguous(), g_idx[: (k + 1) // 2].contiguous()
    weight_kind: Any = "fp8_e4m3" if kind == "fp8" else "int"
    return CanonicalWeight(codes, scales, bits, group_size, table, weight_kind, g_idx).validate()


def activations(m: int, k: int, dtype: torch.dtype, seed: int = 0, device: torch.device | str = "cuda") -> torch.Tensor:
    """x (m, k), normally distributed."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(m, k, generator=generator, device=device).to(dtype)


def error_share(y: torch.Tensor, x: torch.Tensor, w: CanonicalWeight, bias: torch.Tensor | None = None) -> float:
    """The worst error of y (M, N) against fp64, as a share of what is allowed; infinite where y is not finite.

    Allowed are the rounding of the output, and 2^-21 of the sum of all magnitudes for FP32 sums in tensor cores.
    """
    weight = w.dequantize(torch.float64)
    exact = x.double() @ weight.T
    size = weight.abs()
    if w.kind == "int":
        middle = 1 << (w.bits - 1)
        zero = torch.full_like(w.scales, middle).double() if w.zeros is None else w.zeros.double()
        size = (w.codes.double() + zero[:, w.group_index()]) * w.scales.double()[:, w.group_index()]
    allowed = EPSILON[y.dtype] * exact.abs() + 2.0**-21 * (x.double().abs() @ size.T)
    if bias is not None:
        exact = exact + bias.double()
        allowed = allowed + EPSILON[y.dtype] * bias.double().abs()
    if not bool(torch.isfinite(y).all()):
        return float("inf")
    return float(((y.double() - exact).abs() / (allowed + 1e-30)).max()) if y.numel() else 0.0


def check(
    y: torch.Tensor, x: torch.Tensor, w: CanonicalWeight, bias: torch.Tensor | None = None, what: str = "a product"
) -> None:
    """Raise WrongError where y is not x W^T + bias."""
    share = error_share(y, x, w, bias)
    if not share <= 1:
        found = "an output was not written" if share == float("inf") else f"error {share:.3g} times what is allowed"
        raise WrongError(f"{what}: {found}")


def same(a: torch.Tensor, b: torch.Tensor, what: str) -> None:
    """Raise WrongError where two results differ in any bit."""
    if not torch.equal(a, b):
        raise WrongError(f"{what}: the bits differ")


def random_bias(n: int, pick: random.Random, seed: int, device: torch.device) -> torch.Tensor | None:
    """None, or a bias of one of the dtypes that the kernels read."""
    dtype = pick.choice([None, torch.float32, torch.bfloat16, torch.float16])
    return None if dtype is None else activations(1, n, torch.float16, seed, device)[0].to(dtype)


Call = Callable[[torch.Tensor], torch.Tensor]


def in_a_graph(place: Place, call: Call, x: torch.Tensor, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """What a CUDA graph of ``call`` gives for each of ``inputs``, copied into ``x``."""
    call(x)
    graph, results = torch.cuda.CUDAGraph(), []
    with torch.cuda.graph(graph):
        y = call(x)
    for given in inputs:
        x.copy_(given)
        y.fill_(torch.nan)
        graph.replay()
        results.append(y.clone())
    return results


def on_two_streams(calls: Sequence[Call], x: torch.Tensor, rounds: int = 20) -> list[list[torch.Tensor]]:
    """By call, what it gives round by round, while the others run on other streams."""
    streams = [torch.cuda.Stream() for _ in calls]
    torch.cuda.synchronize()
    results: list[list[torch.Tensor]] = [[] for _ in calls]
    for _ in range(rounds):
        for i, (call, stream) in enumerate(zip(calls, streams, strict=True)):
            with torch.cuda.stream(stream):
                results[i].append(call(x))
    torch.cuda.synchronize()
    return results


def order_by_expert(
    chosen: torch.Tensor,
    experts: int,
    tokens: int,
    local: list[int] | None = None,
    device: torch.device | str = "cuda",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tiles of ``tokens`` pairs, each of one expert, as vLLM's ``moe_align_block_size`` makes them: rows, experts and
    padded_rows of ``vqp::wna16_experts_cuda``, with rows behind those in use.

    Args:
        chosen: the expert of each pair, on the CPU.
        local: the place of each expert in the stack, -1 for none.
    """
    pairs = chosen.numel()
    rows, tiles = [], []
    for e in range(experts):
        mine = (chosen == e).nonzero().flatten().tolist()
        mine += [pairs] * (-len(mine) % tokens)
        rows += mine
        tiles += [e if local is None else local[e]] * (len(mine) // tokens)
    used = torch.tensor([len(rows)], dtype=torch.int32, device=device)
    sorted_rows = torch.tensor(rows + [0] * tokens, dtype=torch.int32, device=device)
    return sorted_rows, torch.tensor([*tiles, 0], dtype=torch.int32, device=device), used
