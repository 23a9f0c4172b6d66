"""Random canonical weights for the kernel tests, as hypothesis strategies and as a plain function."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from vllm_quant_kernels.canonical import CanonicalWeight


def random_weight(
    n: int,
    k: int,
    bits: int = 4,
    group_size: int | None = None,
    zeros: str = "none",
    kind: str = "int",
    order: str = "none",
    scale_dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> CanonicalWeight:
    """A weight of the given kind.

    Args:
        group_size: None for one scale per channel.
        zeros: none, integer, wide (beyond the code range) or floating.
        order: none, shuffled (equal groups in random places) or shard (half of the columns of a shuffled weight).
    """
    generator = torch.Generator().manual_seed(seed)
    group_size = k if group_size is None else min(group_size, k)
    groups = -(-k // group_size)
    if kind == "int":
        codes = torch.randint(0, 1 << bits, (n, k), generator=generator, dtype=torch.uint8)
    else:
        # Every finite code: 0x7f and 0xff are NaN in E4M3, exponent 31 is infinity or NaN in E5M2.
        magnitude = torch.randint(0, 0x7F if kind == "fp8_e4m3" else 0x7C, (n, k), generator=generator)
        codes = (magnitude | torch.randint(0, 2, (n, k), generator=generator) << 7).to(torch.uint8)
    scales = (torch.rand(n, groups, generator=generator) + 0.5) / 16
    # E5M2 reaches 57344: keep sums of products inside fp16.
    scales = (scales / 1024 if kind == "fp8_e5m2" else scales).to(scale_dtype)
    table = None
    if zeros == "integer":
        table = torch.randint(0, 1 << bits, (n, groups), generator=generator, dtype=torch.uint8)
    elif zeros == "wide":
        table = torch.randint(0, 256, (n, groups), generator=generator, dtype=torch.uint8)
    elif zeros == "floating":
        table = torch.rand(n, groups, generator=generator) * (1 << bits)
    g_idx = None
    if order != "none":
        g_idx = (torch.arange(k) // group_size)[torch.randperm(k, generator=generator)].int()
        if order == "shard":
            codes, g_idx = codes[:, : (k + 1) // 2].contiguous(), g_idx[: (k + 1) // 2].contiguous()
    return CanonicalWeight(codes, scales, bits, group_size, table, kind, g_idx).validate()  # type: ignore[arg-type]


@st.composite
def weights(draw: st.DrawFn, max_n: int = 70, max_k: int = 300, max_bits: int = 8) -> CanonicalWeight:
    """Any weight the canonical form allows, of sizes that are no multiple of a tile; FP8 counts as 8 bits."""
    kind = draw(st.sampled_from(["int", "int", "int", "fp8_e4m3", "fp8_e5m2"])) if max_bits == 8 else "int"
    bits = draw(st.integers(2, max_bits)) if kind == "int" else 8
    return random_weight(
        n=draw(st.integers(1, max_n)),
        k=draw(st.integers(1, max_k)),
        bits=bits,
        group_size=draw(st.sampled_from([None, 8, 16, 24, 32, 48, 64, 128])),
        zeros=draw(st.sampled_from(["none", "integer", "wide", "floating"])) if kind == "int" else "none",
        kind=kind,
        order=draw(st.sampled_from(["none", "none", "shuffled", "shard"])),
        scale_dtype=draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16])),
        seed=draw(st.integers(0, 2**31)),
    )
