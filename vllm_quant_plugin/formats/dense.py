"""Unquantized weights that are quantized while they load (``-q vqp_int8`` or ``vqp_fp8`` on a 16-bit checkpoint).

weight  bf16, fp16 or fp32 (N, K)
"""

from __future__ import annotations

import torch

from vllm_quant_kernels.canonical import CanonicalWeight
from vllm_quant_plugin.formats.base import FLOATS, Format, Tensors, TensorSpec, check_group
from vllm_quant_plugin.rtn import quantize_fp8, quantize_int
from vllm_quant_plugin.scheme import Scheme


class DenseFormat(Format):
    def specs(self, scheme: Scheme, n: int, k: int) -> dict[str, TensorSpec]:
        if scheme.kind == "int":
            check_group(scheme, k, "online quantization")
        return {"weight": TensorSpec(((n, k),), FLOATS)}

    def unpack(self, tensors: Tensors, scheme: Scheme, n: int, k: int) -> CanonicalWeight:
        weight = tensors["weight"]
        if scheme.kind == "int":
            return quantize_int(weight, scheme.bits, scheme.group_size, symmetric=scheme.symmetric)
        block_n = scheme.block[0] if scheme.block else 1
        return quantize_fp8(weight, scheme.group_size, block_n=block_n, kind=scheme.kind)

    def pack(self, weight: CanonicalWeight, scheme: Scheme) -> dict[str, torch.Tensor]:
        return {"weight": weight.dequantize(torch.float32)}
