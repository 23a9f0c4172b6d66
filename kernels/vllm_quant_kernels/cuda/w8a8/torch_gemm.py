"""8-bit products by other libraries, on the codes and scales of this package: cuBLASLt and CUTLASS through torch, and
DeepGEMM. Nothing is converted: weights are plain rows of codes (weight.py), and scales of groups lie as DeepGEMM
reads them (activation.py)."""

from __future__ import annotations

import functools
import importlib
import importlib.util

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


def group_scales(a: Activations, m: int) -> torch.Tensor:
    """(M, G) over memory [G][M]: scales of x without the padding of rows; a copy unless M is a multiple of 4."""
    return a.scales[:, :m].contiguous().t()


def blockwise(a: Activations, w: WeightW8A8, bias: torch.Tensor | None, out: torch.Tensor) -> torch.Tensor:
    """The FP8 product with 128 x 128 block scales by torch._scaled_mm (cuBLASLt of CUDA 12.9 and newer)."""
    scales, added = group_scales(a, out.shape[0]), None if bias is None else bias.to(out.dtype)
    return torch._scaled_mm(a.q, w.codes.t(), scales, w.scales.t(), bias=added, out_dtype=out.dtype, out=out)


def deepgemm(a: Activations, w: WeightW8A8, bias: torch.Tensor | None, out: torch.Tensor) -> torch.Tensor:
    """The same by DeepGEMM, whose bias is another pass. Out (M, N) is BF16."""
    deep_gemm = importlib.import_module("deep_gemm")
    product = getattr(deep_gemm, "fp8_gemm_nt", None) or deep_gemm.gemm_fp8_fp8_bf16_nt
    # (M, G) over memory [G][M padded to 4]: what its copies of scales read.
    product((a.q, a.scales.t()[: out.shape[0]]), (w.codes, w.scales), out)
    return out if bias is None else out.add_(bias.to(out.dtype))


@functools.cache
def _blockwise_works(device: torch.device) -> bool:
    """Whether this torch multiplies with block scales there: asked once, with a product of ones."""
    q = torch.ones(32, 512, device=device).to(torch.float8_e4m3fn)
    a, scales = Activations(q, torch.ones(4, 32, device=device), None), torch.ones(1, 4, device=device)
    try:
        out = blockwise(a, WeightW8A8(q, scales, None, 9, 32, 512), None, q.new_empty((32, 32), dtype=torch.bfloat16))
    except (RuntimeError, ValueError, TypeError):
        return False
    return bool((out == 512).all())


def available(device: torch.device, wanted: tuple[Backend, ...]) -> set[Backend]:
    """Those of ``wanted`` that run on the GPU ``device`` with what is installed."""
    hopper = torch.cuda.get_device_capability(device) >= HOPPER
    found: set[Backend] = {"cublaslt"}
    if hopper:
        found.add("rowwise")
    if hopper and "deepgemm" in wanted and importlib.util.find_spec("deep_gemm"):
        found.add("deepgemm")
    if hopper and "blockwise" in wanted and _blockwise_works(device):
        found.add("blockwise")
    return found & set(wanted)
