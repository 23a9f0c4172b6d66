"""FP8 checkpoints with ``quant_method: fp8``: per tensor, or 128x128 blocks (DeepSeek).

weight            float8_e4m3fn (N, K)
weight_scale      fp32 scalar, (1,) or one per fused part        per tensor
weight_scale_inv  fp32 (ceil(N / bn), ceil(K / bk))              per block; multiplies, despite its name
input_scale       fp32 scalar or (1,)                            static activations
"""

from __future__ import annotations

import torch

from vllm_quant_kernels.canonical import FP8_DTYPES, CanonicalWeight
from vllm_quant_plugin.formats.base import FLOATS, Format, Tensors, TensorSpec
from vllm_quant_plugin.scheme import Scheme

INPUT_SCALE = TensorSpec(((), (1,)), FLOATS, optional=True)


def expand_block_rows(scales: torch.Tensor, block_n: int, n: int) -> torch.Tensor:
    """(ceil(N / block_n), G) block scales to (N, G): each row of blocks repeated over its outputs."""
    return scales.repeat_interleave(block_n, dim=0)[:n].contiguous()


class Fp8Format(Format):
    def specs(self, scheme: Scheme, n: int, k: int) -> dict[str, TensorSpec]:
        found = {"weight": TensorSpec(((n, k),), (FP8_DTYPES[scheme.kind],)), "input_scale": INPUT_SCALE}
        if scheme.block:
            blocks = (-(-n // scheme.block[0]), -(-k // scheme.block[1]))
            found["weight_scale_inv"] = TensorSpec((blocks,), FLOATS)
        else:
            found["weight_scale"] = TensorSpec(((), (1,)), FLOATS)
        return found

    def unpack(self, tensors: Tensors, scheme: Scheme, n: int, k: int) -> CanonicalWeight:
        if scheme.block:
            scales = expand_block_rows(tensors["weight_scale_inv"].float(), scheme.block[0], n)
            group = scheme.block[1]
        else:
            scales, group = tensors["weight_scale"].float().reshape(1, 1).expand(n, 1).contiguous(), k
        codes = tensors["weight"].contiguous().view(torch.uint8)
        return CanonicalWeight(codes, scales, 8, group, kind=scheme.kind)

    def pack(self, weight: CanonicalWeight, scheme: Scheme) -> dict[str, torch.Tensor]:
        tensors = {"weight": weight.codes.view(FP8_DTYPES[scheme.kind])}
        if scheme.block:
            tensors["weight_scale_inv"] = weight.scales.float()[:: scheme.block[0]].contiguous()
        else:
            tensors["weight_scale"] = weight.scales.float()[0, 0].clone()
        return tensors
