"""The kernel without a kernel: the canonical tensors, dequantized for each call. Correct on any device, and slow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from vllm_quant_kernels import kernel_sizes as sizes
from vllm_quant_kernels.kernel import Device, Kernel, Packed, Tensors
from vllm_quant_kernels.scheme import VectorCodebook, WeightScheme

if TYPE_CHECKING:
    import torch

    from vllm_quant_kernels.canonical import CanonicalWeight


class Dequantizing(Kernel):
    """``CanonicalWeight.dequantize``, then torch's linear."""

    name = "dequantize"
    device = ""
    priority = 0

    def can_run(self, scheme: WeightScheme, n: int, k: int, device: Device, dtype: str = "bfloat16") -> str | None:
        return f"the transform {scheme.transform}" if scheme.transform else None

    def packed_bytes(self, scheme: WeightScheme, n: int, k: int, full_k: int | None = None, itemsize: int = 2) -> int:
        groups = sizes.group_count(scheme, k, full_k)
        tables = sizes.scale_bytes(scheme, itemsize) + sizes.zero_bytes(scheme)
        codes = n * k
        if isinstance(scheme.value, VectorCodebook):
            codes = n * (k // scheme.value.dim) * (1 if scheme.value.code_bits <= 8 else 2)
        extra = sizes.table_bytes(scheme, n) + sizes.super_scale_bytes(scheme, n, groups)
        index = sizes.INDEX_BYTES * k if scheme.act_order else 0
        return codes + n * groups * tables + index + extra

    def pack(
        self, weight: CanonicalWeight, scheme: WeightScheme, static: Mapping[str, torch.Tensor] | None = None
    ) -> Packed:
        w = weight.plain()
        tensors: Tensors = {
            "": w.codes, "_scales": w.scales, "_zeros": w.zeros, "_g_idx": w.g_idx,
            "_table": w.table, "_super_scales": w.super_scales,
        }  # fmt: skip
        return Packed(self, tensors, w.out_features, (w.bits, w.group_size, w.kind, w.per_super, w.dim))

    def apply(self, packed: Packed, tensors: Tensors, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        import torch

        return torch.nn.functional.linear(x, self.dequantize(packed, tensors).to(x.dtype), bias)

    def dequantize(self, packed: Packed, tensors: Tensors) -> torch.Tensor:
        from vllm_quant_kernels.canonical import CanonicalWeight

        codes, scales = tensors[""], tensors["_scales"]
        assert codes is not None
        assert scales is not None
        bits, group_size, kind, per_super, dim = packed.args
        zeros, g_idx, table, super_scales = (tensors[s] for s in ("_zeros", "_g_idx", "_table", "_super_scales"))
        return CanonicalWeight(
            codes, scales, bits, group_size, zeros, kind, g_idx, table, super_scales, per_super, dim
        ).dequantize()
