"""Unquantized weights that are quantized while they load (``-q vqp_int8`` or ``vqp_fp8`` on a 16-bit checkpoint).

weight  bf16, fp16 or fp32 (N, K)
"""

from __future__ import annotations

import torch

from vllm_quant_kernels.canonical import CanonicalWeight, concat_rows
from vllm_quant_plugin.formats.base import FLOATS, Format, Tensors, TensorSpec, check_group
from vllm_quant_plugin.rtn import quantize_fp8, quantize_int
from vllm_quant_plugin.scheme import PER_TENSOR, Scheme

PIECE = 1 << 17  # weights: their FP32 intermediates stay in the cache, and the allocator uses the same pages again
GPU_PIECE = 1 << 23  # launches cost more than the memory: 32 MB an intermediate


def rows_at_a_time(k: int, block_n: int, piece: int = PIECE) -> int:
    """Rows of about ``piece`` weights, whole blocks of ``block_n``."""
    return max(1, piece // (k * block_n)) * block_n


class DenseFormat(Format):
    def specs(self, scheme: Scheme, n: int, k: int) -> dict[str, TensorSpec]:
        if scheme.kind == "int":
            check_group(scheme, k, "online quantization")
        return {"weight": TensorSpec(((n, k),), FLOATS)}

    def unpack(self, tensors: Tensors, scheme: Scheme, n: int, k: int) -> CanonicalWeight:
        block_n = scheme.block[0] if scheme.block else 1

        def quantize(rows: torch.Tensor) -> CanonicalWeight:
            if scheme.kind == "int":
                return quantize_int(rows, scheme.bits, scheme.group_size, symmetric=scheme.symmetric)
            return quantize_fp8(rows, scheme.group_size, block_n=block_n, kind=scheme.kind)

        weight = tensors["weight"]
        if scheme.group_size == PER_TENSOR:
            return quantize(weight)
        piece = PIECE if weight.device.type == "cpu" else GPU_PIECE
        return concat_rows([quantize(part) for part in weight.split(rows_at_a_time(k, block_n, piece))])

    def pack(self, weight: CanonicalWeight, scheme: Scheme) -> dict[str, torch.Tensor]:
        return {"weight": weight.dequantize(torch.float32)}
