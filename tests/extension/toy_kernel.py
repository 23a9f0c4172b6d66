"""A kernel from outside the package: the two-to-a-byte codes stay packed, and each call dequantizes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from vllm_quant_kernels.kernel import Device, Kernel, Packed, Tensors
from vllm_quant_kernels.kernel_sizes import scale_bytes
from vllm_quant_kernels.scheme import Int, WeightScheme

if TYPE_CHECKING:
    import torch

    from vllm_quant_kernels.canonical import CanonicalWeight


class ToyKernel(Kernel):
    name = "toy-w4a16"
    device = "cpu"
    # The package's own kernels have at most 200.
    priority = 1000

    def label(self, scheme: WeightScheme) -> str:
        return "toy W4A16"

    def can_run(self, scheme: WeightScheme, n: int, k: int, device: Device, dtype: str = "bfloat16") -> str | None:
        if scheme.value != Int(4) or not scheme.symmetric:
            return "it runs symmetric INT4 only"
        if scheme.act_order or scheme.activation is not None:
            return "it runs neither act-order nor 8-bit activations"
        if scheme.group_size < 2 or scheme.group_size % 2 or k % scheme.group_size:
            return "it runs whole groups of an even size only"
        return None

    def packed_bytes(self, scheme: WeightScheme, n: int, k: int, full_k: int | None = None, itemsize: int = 2) -> int:
        return n * k // 2 + n * scheme.groups(k) * scale_bytes(scheme, itemsize)

    def pack(
        self, weight: CanonicalWeight, scheme: WeightScheme, static: Mapping[str, torch.Tensor] | None = None
    ) -> Packed:
        codes = weight.plain().codes
        tensors: Tensors = {"": codes[:, ::2] | codes[:, 1::2] << 4, "_scales": weight.scales.contiguous()}
        return Packed(self, tensors, weight.out_features, weight.group_size)

    def apply(self, packed: Packed, tensors: Tensors, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        import torch

        return torch.nn.functional.linear(x, self.dequantize(packed, tensors).to(x.dtype), bias)

    def dequantize(self, packed: Packed, tensors: Tensors) -> torch.Tensor:
        import torch

        nibbles, scales = tensors[""], tensors["_scales"]
        assert nibbles is not None
        assert scales is not None
        codes = torch.stack((nibbles & 15, nibbles >> 4), dim=-1).flatten(1)
        return (codes.float() - 8) * scales.float().repeat_interleave(packed.args, dim=1)


KERNEL = ToyKernel()
