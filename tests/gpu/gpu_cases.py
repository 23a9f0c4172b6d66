"""Random weights, activations and the error bound of the GPU tests. Needs torch only."""

from __future__ import annotations

import random
from typing import Any

import torch

from vllm_quant_kernels.canonical import CanonicalWeight

EPSILON = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
KINDS = ["2", "3", "4", "5", "6", "7", "8", "fp8_e4m3"]


def random_weight(
    n: int,
    k: int,
    kind: str = "4",
    group_size: int | None = 128,
    zeros: str = "none",
    order: str = "none",
    scale_dtype: torch.dtype = torch.float16,
    seed: int = 0,
) -> CanonicalWeight:
    """On the GPU. ``kind``: bits, or fp8_e4m3. ``zeros``: none, integer, wide or floating. ``order``: none,
    shuffled, or shard (a row-parallel half of a shuffled weight)."""
    generator = torch.Generator("cuda").manual_seed(seed)

    def draw(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=generator, device="cuda", dtype=torch.uint8)

    bits = int(kind) if kind.isdigit() else 8
    group_size = k if group_size is None else min(group_size, k)
    groups = -(-k // group_size)
    codes = draw(0, 1 << bits, n, k)
    if not kind.isdigit():
        codes = torch.where((codes & 0x7F) == 0x7F, codes ^ 1, codes)  # E4M3's NaN
    scales = ((torch.rand(n, groups, generator=generator, device="cuda") + 0.5) / 16).to(scale_dtype)
    table = None
    if zeros in ("integer", "wide"):
        table = draw(0, 256 if zeros == "wide" else 1 << bits, n, groups)
    elif zeros == "floating":
        table = torch.rand(n, groups, generator=generator, device="cuda") * (1 << bits)
    g_idx = None
    if order != "none":
        shuffle = torch.randperm(k, generator=generator, device="cuda")
        g_idx = (torch.arange(k, device="cuda") // group_size)[shuffle].int()
        if order == "shard":
            codes, g_idx = codes[:, : (k + 1) // 2].contiguous(), g_idx[: (k + 1) // 2].contiguous()
    weight_kind: Any = "int" if kind.isdigit() else kind
    return CanonicalWeight(codes, scales, bits, group_size, table, weight_kind, g_idx).validate()


def activations(m: int, k: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(m, k, generator=generator, device="cuda").to(dtype)


def check(y: torch.Tensor, x: torch.Tensor, w: CanonicalWeight, bias: torch.Tensor | None = None) -> None:
    """Against fp64: rounding of the output, and 2^-21 of the sum of all magnitudes for FP32 tensor-core sums."""
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
    assert bool(torch.isfinite(y).all()), "an output was not written"
    worst = ((y.double() - exact).abs() / (allowed + 1e-30)).max()
    assert float(worst) <= 1, f"error is {float(worst):.2f} of what is allowed"


def check_on_cpu(y: torch.Tensor, x: torch.Tensor, w: CanonicalWeight) -> None:
    """The same without a kernel of its own on the GPU."""
    fields = {name: value.cpu() if isinstance(value, torch.Tensor) else value for name, value in vars(w).items()}
    check(y.cpu(), x.cpu(), CanonicalWeight(**fields))


def order_by_expert(
    chosen: torch.Tensor, experts: int, tokens: int, local: list[int] | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tiles of ``tokens`` pairs, each of one expert, as vLLM's ``moe_align_block_size`` makes them: rows, experts and
    padded_rows of ``vqp::wna16_experts_cuda``, with rows behind those in use.

    ``chosen``: the expert of each pair, on the CPU. ``local``: the place of each expert in the stack, -1 for none.
    """
    pairs = chosen.numel()
    rows, tiles = [], []
    for e in range(experts):
        mine = (chosen == e).nonzero().flatten().tolist()
        mine += [pairs] * (-len(mine) % tokens)
        rows += mine
        tiles += [e if local is None else local[e]] * (len(mine) // tokens)
    used = torch.tensor([len(rows)], dtype=torch.int32, device="cuda")
    sorted_rows = torch.tensor(rows + [0] * tokens, dtype=torch.int32, device="cuda")
    return sorted_rows, torch.tensor([*tiles, 0], dtype=torch.int32, device="cuda"), used


def random_case(number: int) -> dict[str, Any]:
    pick = random.Random(number)
    kind = pick.choice(KINDS)
    return {
        "m": pick.choice([1, 2, 5, 8, 13, 16, 24, 32, 33, 64, 65, 100, 257, 1000]),
        "n": pick.choice([16, 40, 128, 200, 512, 1024, 1280, 4096, 14336 // 4]),
        "k": pick.choice([64, 100, 128, 256, 777, 1024, 2048, 4096, 14336 // 4]),
        "kind": kind,
        "group_size": pick.choice([None, 16, 32, 64, 128, 256, 96, 24]),
        "zeros": pick.choice(["none", "integer", "wide", "floating"]) if kind.isdigit() else "none",
        "order": pick.choice(["none", "none", "shuffled", "shard"]),
        "scale_dtype": pick.choice([torch.float32, torch.float16, torch.bfloat16]),
        "dtype": pick.choice([torch.float16, torch.bfloat16]),
        "bias": pick.choice([None, torch.float32, torch.bfloat16, torch.float16]),
        "batch_invariant": pick.random() < 0.3,
    }
