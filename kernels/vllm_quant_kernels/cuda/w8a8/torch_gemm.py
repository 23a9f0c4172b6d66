"""8-bit GEMMs by cuBLASLt and CUTLASS through torch, on the codes and scales of this package: nothing is converted, as
weights are plain rows of codes (weight.py)."""

from __future__ import annotations

import torch

from vllm_quant_kernels.cuda.w8a8.activation import Activations
from vllm_quant_kernels.cuda.w8a8.choice import Backend
from vllm_quant_kernels.cuda.w8a8.weight import WeightW8A8

HOPPER = (9, 0)


def cublaslt_sums(q: torch.Tensor, codes: torch.Tensor, promote: bool) -> torch.Tensor:
    """(M, N) int32 or float32: the products of codes (M, K) and (N, K) by cuBLASLt."""
    if q.dtype == torch.int8:
        return torch._int_mm(q, codes.t())
    one = torch.ones((), device=q.device)
    return torch._scaled_mm(q, codes.t(), one, one, out_dtype=torch.float32, use_fast_accum=not promote)


def rowwise(a: Activations, w: WeightW8A8, bias: torch.Tensor | None, out: torch.Tensor, promote: bool) -> torch.Tensor:
    """The FP8 product by torch._scaled_mm, scales and bias in its epilogue. Out (M, N) is BF16."""
    rows = a.scales.view(-1, 1).expand(out.shape[0], 1).contiguous()
    columns, added = w.scales.view(1, -1), None if bias is None else bias.to(out.dtype)
    return torch._scaled_mm(
        a.q, w.codes.t(), rows, columns, bias=added, out_dtype=out.dtype, use_fast_accum=not promote, out=out
    )


def available(device: torch.device, wanted: tuple[Backend, ...]) -> set[Backend]:
    """Those of ``wanted`` that run on the GPU ``device`` with what is installed."""
    hopper = torch.cuda.get_device_capability(device) >= HOPPER
    found: set[Backend] = {"cublaslt"}
    if hopper:
        found.add("rowwise")
    return found & set(wanted)
