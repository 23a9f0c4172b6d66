"""AutoAWQ's "gemm" layout (casper-hansen/AutoAWQ, awq/modules/linear/gemm.py).

    qweight  int32 (K, N * bits / 32)   output features packed along N, interleaved
    qzeros   int32 (G, N * bits / 32)   likewise; may be absent when zero_point is false
    scales   fp16  (G, N)

Within a word the fields hold the even output features first, then the odd ones: for 4 bits
0 2 4 6 1 3 5 7 from the low bits up; for 8 bits 0 2 1 3 (vLLM's ``awq_pack``), and 2 bits in
the same manner. 3 bits do not fill a 32-bit word, so this layout has none.
"""

from __future__ import annotations

import torch

from vllm_quant_kernels.canonical import CanonicalWeight
from vllm_quant_kernels.unpack import WordCodes, field_order
from vllm_quant_kernels.unpack_weight import StoredWeight
from vllm_quant_plugin.errors import CheckpointError
from vllm_quant_plugin.formats.base import FLOATS, Format, Tensors, TensorSpec, check_group
from vllm_quant_plugin.formats.bits import pack_padded
from vllm_quant_plugin.scheme import Scheme


class AwqFormat(Format):
    def specs(self, scheme: Scheme, n: int, k: int) -> dict[str, TensorSpec]:
        check_group(scheme, k, "AWQ")
        if n * scheme.bits % 32:
            raise CheckpointError(
                f"AWQ: {n} output features of {scheme.bits} bits do not fill 32-bit words",
                f"out_features must be a multiple of {32 // scheme.bits}",
            )
        words, groups = n * scheme.bits // 32, scheme.groups(k)
        return {
            "qweight": TensorSpec(((k, words),), (torch.int32,)),
            "qzeros": TensorSpec(((groups, words),), (torch.int32,), optional=scheme.symmetric),
            "scales": TensorSpec(((groups, n),), FLOATS),
        }

    def unpack(self, tensors: Tensors, scheme: Scheme, n: int, k: int) -> CanonicalWeight:
        bits, zeros = scheme.bits, None
        if "qzeros" in tensors:
            qzeros = tensors["qzeros"]
            zeros = WordCodes(qzeros, "n", bits, n, qzeros.shape[0]).tensor()
        codes = WordCodes(tensors["qweight"], "n", bits, n, k)
        return StoredWeight((codes,), tensors["scales"].t().contiguous(), scheme.group_of(k), zeros)

    def pack(self, weight: CanonicalWeight, scheme: Scheme) -> dict[str, torch.Tensor]:
        order = field_order(scheme.bits)
        tensors = {
            "qweight": pack_padded(weight.codes.t().contiguous(), scheme.bits, order),
            "scales": weight.scales.t().contiguous().half(),
        }
        if weight.zeros is not None:
            tensors["qzeros"] = pack_padded(weight.zeros.round().to(torch.uint8).t().contiguous(), scheme.bits, order)
        return tensors
