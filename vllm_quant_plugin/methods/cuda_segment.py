"""Layers on an NVIDIA GPU by the CUDA kernels: only with VQP_CUDA_KERNELS=1 until they have passed on hardware."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from vllm_quant_kernels.canonical import CanonicalWeight
from vllm_quant_kernels.cuda import library as cuda_library
from vllm_quant_kernels.cuda import ops  # noqa: F401  (defines the operators)
from vllm_quant_kernels.cuda.pack import dequantize_cuda, pack_cuda
from vllm_quant_kernels.cuda.weight import PackedCuda
from vllm_quant_kernels.shared_library import LibraryError
from vllm_quant_plugin.errors import BackendError
from vllm_quant_plugin.methods.kernel import PackedSegment, Tensors


@dataclass(frozen=True)
class CudaSegment(PackedSegment):
    """``vqp::wna16_linear_cuda``: 16-bit activations, weights of 2 to 8 bits or FP8 E4M3."""

    packed: PackedCuda
    batch_invariant: bool

    def apply(self, tensors: Tensors, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        p = self.packed
        return torch.ops.vqp.wna16_linear_cuda(
            x,
            tensors[""],
            tensors["_scales"],
            tensors["_zeros"],
            tensors["_perm"],
            bias,
            p.kind,
            p.group_size,
            p.n,
            p.k,
            self.batch_invariant,
        )

    def dequantize(self, tensors: Tensors) -> torch.Tensor:
        return dequantize_cuda(self.with_tensors(tensors))


def serves(weight: CanonicalWeight, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the CUDA kernels are switched on and read this weight."""
    if device.type != "cuda" or weight.kind == "fp8_e5m2" or dtype not in (torch.bfloat16, torch.float16):
        return False
    try:
        return cuda_library.enabled()
    except LibraryError as error:
        raise BackendError(str(error), hint="unset VQP_CUDA_KERNELS") from error


def batch_invariant() -> bool:
    """Whether vLLM was asked for results that do not depend on the batch."""
    return os.environ.get("VLLM_BATCH_INVARIANT", "0") == "1"


def cuda_segment(weight: CanonicalWeight) -> CudaSegment:
    """Pack ``weight`` where it is. Raises BackendError where the kernels were switched on but not built."""
    return CudaSegment(packed_for_cuda(weight), batch_invariant())


def packed_for_cuda(weight: CanonicalWeight) -> PackedCuda:
    """As :func:`cuda_segment`, the packed tensors alone."""
    try:
        cuda_library.load()
    except LibraryError as error:
        raise BackendError(str(error), hint="run `make` with nvcc on PATH, or unset VQP_CUDA_KERNELS") from error
    return pack_cuda(weight)
