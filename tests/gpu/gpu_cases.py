"""The problems of the GPU tests: those of the verification on the machine, on the GPU. Needs torch only."""

from __future__ import annotations

import random
from typing import Any

import torch

from vllm_quant_kernels.canonical import CanonicalWeight
from vllm_quant_kernels.cuda.verify import cases
from vllm_quant_kernels.cuda.verify.cases import EPSILON, activations, order_by_expert

__all__ = [
    "EPSILON",
    "KINDS",
    "activations",
    "check",
    "check_on_cpu",
    "order_by_expert",
    "random_case",
    "random_weight",
]
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
    """``cases.random_weight`` on the GPU; ``kind``: bits, or fp8_e4m3."""
    name = f"int{kind}" if kind.isdigit() else "fp8"
    return cases.random_weight(n, k, name, group_size, zeros, order, scale_dtype, seed)


def check(y: torch.Tensor, x: torch.Tensor, w: CanonicalWeight, bias: torch.Tensor | None = None) -> None:
    """Against fp64, within what ``cases.error_share`` allows."""
    share = cases.error_share(y, x, w, bias)
    assert share != float("inf"), "an output was not written"
    assert share <= 1, f"error is {share:.2f} of what is allowed"


def check_on_cpu(y: torch.Tensor, x: torch.Tensor, w: CanonicalWeight) -> None:
    """The same without a kernel of its own on the GPU."""
    fields = {name: value.cpu() if isinstance(value, torch.Tensor) else value for name, value in vars(w).items()}
    check(y.cpu(), x.cpu(), CanonicalWeight(**fields))


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
