"""AutoGPTQ's and GPTQModel's layout, zero conventions v1 and v2.

    qweight  int32 (K * bits / 32, N)   input features packed along K, dense (3-bit fields cross words)
    qzeros   int32 (G, N * bits / 32)   packed along N; v1 stores zero - 1, v2 the zero itself
    scales   fp16  (G, N)
    g_idx    int32 (K,)                 group of each input feature; meaningful with act-order

v1's "minus one" was subtracted from whole packed words for 2, 4 and 8 bits (GPTQModel,
utils/model.py ``convert_gptq_v2_to_v1_format_module``), so a zero of 0 borrows from its
neighbour; adding to the word undoes exactly that. For 3 bits it is done per field, modulo 8.
"""

from __future__ import annotations

import torch

from vllm_quant_kernels.canonical import CanonicalWeight
from vllm_quant_kernels.unpack import WordCodes
from vllm_quant_kernels.unpack_weight import StoredWeight
from vllm_quant_plugin.errors import CheckpointError
from vllm_quant_plugin.formats.base import FLOATS, Format, Tensors, TensorSpec, check_group
from vllm_quant_plugin.formats.bits import dense_words, pack_dense, unpack_dense
from vllm_quant_plugin.scheme import Scheme


def _word_of_ones(bits: int) -> int:
    """The word whose every field is 1, as the int32 that torch adds."""
    word = sum(1 << shift for shift in range(0, 32, bits))
    return word - (1 << 32) if word >= 1 << 31 else word


def _unpack_zeros(qzeros: torch.Tensor, scheme: Scheme, n: int) -> torch.Tensor:
    if scheme.zero_offset and 32 % scheme.bits == 0:
        # int32 addition wraps modulo 2**32, as the subtraction did.
        return unpack_dense(qzeros + _word_of_ones(scheme.bits), scheme.bits, n)
    fields = unpack_dense(qzeros, scheme.bits, n)
    return (fields + scheme.zero_offset) & ((1 << scheme.bits) - 1)


def _pack_zeros(zeros: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    if scheme.zero_offset and 32 % scheme.bits == 0:
        return pack_dense(zeros, scheme.bits) - _word_of_ones(scheme.bits)
    return pack_dense((zeros - scheme.zero_offset) & ((1 << scheme.bits) - 1), scheme.bits)


class GptqFormat(Format):
    def specs(self, scheme: Scheme, n: int, k: int) -> dict[str, TensorSpec]:
        if not scheme.act_order:
            check_group(scheme, k, "GPTQ")
        for what, count in (("in_features", k), ("out_features", n)):
            if count * scheme.bits % 32:
                raise CheckpointError(
                    f"GPTQ: {count} {what} of {scheme.bits} bits do not fill 32-bit words",
                    f"{what} must be a multiple of 32",
                )
        groups = scheme.groups(k)
        return {
            "qweight": TensorSpec(((dense_words(k, scheme.bits), n),), (torch.int32,)),
            "qzeros": TensorSpec(((groups, dense_words(n, scheme.bits)),), (torch.int32,), optional=scheme.symmetric),
            "scales": TensorSpec(((groups, n),), FLOATS),
            "g_idx": TensorSpec(((k,),), (torch.int32, torch.int64), optional=not scheme.act_order),
        }

    def unpack(self, tensors: Tensors, scheme: Scheme, n: int, k: int) -> CanonicalWeight:
        zeros = None
        if "qzeros" in tensors:
            zeros = _unpack_zeros(tensors["qzeros"], scheme, n).t().contiguous()
            if scheme.symmetric and bool((zeros == 1 << (scheme.bits - 1)).all()):
                zeros = None
        group, groups = scheme.group_of(k), scheme.groups(k)
        g_idx = tensors.get("g_idx")
        if g_idx is not None:
            if k and (int(g_idx.min()) < 0 or int(g_idx.max()) >= groups):
                raise CheckpointError(f"g_idx holds a group outside 0..{groups - 1}", "the checkpoint is damaged")
            g_idx = g_idx.to(torch.int32)
            # A g_idx in natural order says nothing: the kernels need no gather then.
            if torch.equal(g_idx, (torch.arange(k, device=g_idx.device) // group).to(torch.int32)):
                g_idx = None
        codes = WordCodes(tensors["qweight"], "k", scheme.bits, n, k)
        return StoredWeight((codes,), tensors["scales"].t().contiguous(), group, zeros, g_idx)

    def pack(self, weight: CanonicalWeight, scheme: Scheme) -> dict[str, torch.Tensor]:
        zeros = weight.zeros
        if zeros is None:
            zeros = torch.full(weight.scales.shape, 1 << (scheme.bits - 1), dtype=torch.uint8)
        return {
            "qweight": pack_dense(weight.codes, scheme.bits).t().contiguous(),
            "qzeros": _pack_zeros(zeros.round().to(torch.uint8).t().contiguous(), scheme),
            "scales": weight.scales.t().contiguous().half(),
            "g_idx": weight.group_index().to(torch.int32),
        }
