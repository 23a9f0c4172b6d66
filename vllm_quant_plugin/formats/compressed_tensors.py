"""compressed-tensors layouts that llm-compressor writes.

pack-quantized     weight_packed      int32 (N, words(K))    fields offset by 2**(bits-1)
                   weight_scale       (N, G)
                   weight_zero_point  int32 (words(N), G)    asymmetric only, packed along N
                   weight_g_idx       int32 (K,)             act-order only
                   weight_shape       int64 (2,)
int-quantized      weight             int8 (N, K)
float-quantized    weight             float8_e4m3fn (N, K)
  both             weight_scale       (N, 1), (N, G), (1,), () or (N / bn, K / bk)
                   weight_zero_point  int8, like weight_scale, asymmetric only
                   input_scale, input_zero_point             static activations

2, 4 and 8 bits fill a word. 3, 5, 6 and 7 bits are padded (32 // bits fields a word) by
compressed-tensors up to 0.17 and dense from 0.18 on; the width of weight_packed tells which when
reading. Writing is dense, the layout that vLLM's loader expects.
"""

from __future__ import annotations

import torch

from vllm_quant_kernels.canonical import FP8_DTYPES, CanonicalWeight
from vllm_quant_kernels.unpack import WordCodes
from vllm_quant_kernels.unpack_weight import StoredWeight
from vllm_quant_plugin.formats.base import FLOATS, Format, Tensors, TensorSpec
from vllm_quant_plugin.formats.bits import (
    dense_words,
    pack_dense,
    padded_words,
    unpack_dense,
    unpack_padded,
)
from vllm_quant_plugin.formats.fp8 import expand_block_rows
from vllm_quant_plugin.scheme import PER_CHANNEL, PER_TENSOR, Scheme

INPUT_SCALE = TensorSpec(((), (1,)), FLOATS, optional=True)
INPUT_ZERO = TensorSpec(((), (1,)), (torch.int8, torch.int32, *FLOATS), optional=True)


def scale_shapes(scheme: Scheme, n: int, k: int) -> tuple[tuple[int, ...], ...]:
    """Accepted shapes of weight_scale."""
    if scheme.block:
        return ((-(-n // scheme.block[0]), -(-k // scheme.block[1])),)
    if scheme.group_size == PER_TENSOR:
        return ((), (1,), (1, 1))
    if scheme.group_size == PER_CHANNEL:
        return ((n, 1), (n,))
    return ((n, scheme.groups(k)),)


def to_groups(values: torch.Tensor, scheme: Scheme, n: int) -> torch.Tensor:
    """Scales or zeros of any accepted shape to (N, G)."""
    if scheme.block:
        return expand_block_rows(values, scheme.block[0], n)
    if values.numel() == 1:
        return values.reshape(1, 1).expand(n, 1).contiguous()
    return values.reshape(n, -1).contiguous()


def _unpack_words(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """uint8 (..., count) from words of either layout, told apart by their number."""
    if words.shape[-1] == padded_words(count, bits):
        return unpack_padded(words, bits, count)
    return unpack_dense(words, bits, count)


class PackQuantizedFormat(Format):
    def specs(self, scheme: Scheme, n: int, k: int) -> dict[str, TensorSpec]:
        bits, groups = scheme.bits, scheme.groups(k)
        packed = tuple((n, words(k, bits)) for words in (padded_words, dense_words))
        packed_zeros = tuple((words(n, bits), groups) for words in (padded_words, dense_words))
        return {
            "weight_packed": TensorSpec(packed, (torch.int32,)),
            "weight_scale": TensorSpec(scale_shapes(scheme, n, k), FLOATS),
            "weight_zero_point": TensorSpec(packed_zeros, (torch.int32,), optional=scheme.symmetric),
            "weight_g_idx": TensorSpec(((k,),), (torch.int32, torch.int64), optional=not scheme.act_order),
            "weight_shape": TensorSpec(((2,),), (torch.int32, torch.int64), optional=True),
        }

    def unpack(self, tensors: Tensors, scheme: Scheme, n: int, k: int) -> CanonicalWeight:
        zeros, words = None, tensors["weight_packed"]
        if "weight_zero_point" in tensors:
            zeros = _unpack_words(tensors["weight_zero_point"].t().contiguous(), scheme.bits, n).t().contiguous()
        g_idx = tensors.get("weight_g_idx") if scheme.act_order else None
        padded = words.shape[-1] == padded_words(k, scheme.bits)
        return StoredWeight(
            (WordCodes(words, "k_padded" if padded else "k_rows", scheme.bits, n, k),),
            scales=to_groups(tensors["weight_scale"], scheme, n),
            group_size=scheme.group_of(k),
            zeros=zeros,
            g_idx=None if g_idx is None else g_idx.to(torch.int32),
        )

    def pack(self, weight: CanonicalWeight, scheme: Scheme) -> dict[str, torch.Tensor]:
        n, k = weight.codes.shape
        tensors = {
            "weight_packed": pack_dense(weight.codes, scheme.bits),
            "weight_scale": weight.scales,
            "weight_shape": torch.tensor([n, k]),
        }
        if weight.zeros is not None:
            zeros = weight.zeros.round().to(torch.uint8).t().contiguous()
            tensors["weight_zero_point"] = pack_dense(zeros, scheme.bits).t().contiguous()
        if weight.g_idx is not None:
            tensors["weight_g_idx"] = weight.g_idx
        return tensors


class _PlainFormat(Format):
    """One element per weight, in a byte."""

    def _dtype(self, scheme: Scheme) -> torch.dtype:
        return torch.int8 if scheme.kind == "int" else FP8_DTYPES[scheme.kind]

    def specs(self, scheme: Scheme, n: int, k: int) -> dict[str, TensorSpec]:
        shapes = scale_shapes(scheme, n, k)
        found = {
            "weight": TensorSpec(((n, k),), (self._dtype(scheme),)),
            "weight_scale": TensorSpec(shapes, FLOATS),
            "input_scale": INPUT_SCALE,
            "input_zero_point": INPUT_ZERO,
        }
        if not scheme.symmetric:
            found["weight_zero_point"] = TensorSpec(shapes, (torch.int8, *FLOATS))
        if scheme.act_order:
            found["weight_g_idx"] = TensorSpec(((k,),), (torch.int32, torch.int64))
        return found

    def unpack(self, tensors: Tensors, scheme: Scheme, n: int, k: int) -> CanonicalWeight:
        weight, zeros = tensors["weight"].contiguous(), None
        if scheme.kind == "int":
            # Two's complement with the top bit flipped is the code: -128 -> 0, 0 -> 128, 127 -> 255.
            codes = weight.view(torch.uint8) ^ 0x80
            if "weight_zero_point" in tensors and not scheme.symmetric:
                zeros = to_groups(tensors["weight_zero_point"], scheme, n).float() + 128
        else:
            codes = weight.view(torch.uint8)
        g_idx = tensors.get("weight_g_idx") if scheme.act_order else None
        return CanonicalWeight(
            codes,
            to_groups(tensors["weight_scale"], scheme, n),
            8,
            scheme.block[1] if scheme.block else scheme.group_of(k),
            zeros,
            scheme.kind,
            None if g_idx is None else g_idx.to(torch.int32),
        )

    def pack(self, weight: CanonicalWeight, scheme: Scheme) -> dict[str, torch.Tensor]:
        if scheme.kind == "int":
            values = (weight.codes ^ 0x80).view(torch.int8)
        else:
            values = weight.codes.view(FP8_DTYPES[scheme.kind])
        scales = weight.scales
        if scheme.block:
            scales = scales[:: scheme.block[0]].contiguous()
        elif scheme.group_size == PER_TENSOR:
            scales = scales[0, 0].clone()
        tensors = {"weight": values, "weight_scale": scales}
        if weight.zeros is not None:
            zeros = (weight.zeros.float() - 128).round().to(torch.int8)
            tensors["weight_zero_point"] = zeros[0, 0].clone() if scheme.group_size == PER_TENSOR else zeros
        if weight.g_idx is not None:
            tensors["weight_g_idx"] = weight.g_idx
        return tensors


class IntQuantizedFormat(_PlainFormat):
    """compressed-tensors int-quantized. Codes narrower than 8 bits are stored in a byte each as well."""


class FloatQuantizedFormat(_PlainFormat):
    """compressed-tensors float-quantized (FP8)."""
