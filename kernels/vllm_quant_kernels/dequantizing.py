"""The kernel without a kernel: packed codes, dequantized tile by tile in each call. Correct on any device, and slow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from vllm_quant_kernels import kernel_sizes as sizes
from vllm_quant_kernels.kernel import Device, Kernel, Packed, Tensors
from vllm_quant_kernels.scheme import VectorCodebook, WeightScheme
from vllm_quant_kernels.sizes import dense_words

if TYPE_CHECKING:
    import torch

    from vllm_quant_kernels.canonical import CanonicalWeight


class Dequantizing(Kernel):
    """``vqp::dequantized_linear``: a tile of output features at a time becomes 16-bit, and torch multiplies by it."""

    name = "dequantize"
    device = ""
    priority = 0

    def can_run(self, scheme: WeightScheme, n: int, k: int, device: Device, dtype: str = "bfloat16") -> str | None:
        return f"the transform {scheme.transform}" if scheme.transform else None

    def packed_bytes(self, scheme: WeightScheme, n: int, k: int, full_k: int | None = None, itemsize: int = 2) -> int:
        groups = sizes.group_count(scheme, k, full_k)
        tables = sizes.scale_bytes(scheme, itemsize) + sizes.zero_bytes(scheme)
        if isinstance(scheme.value, VectorCodebook):
            codes = n * (k // scheme.value.dim) * (1 if scheme.value.code_bits <= 8 else 2)
        else:
            codes = n * (k if scheme.bits == 8 else 4 * dense_words(k, scheme.bits))
        extra = sizes.table_bytes(scheme, n) + sizes.super_scale_bytes(scheme, n, groups)
        index = sizes.INDEX_BYTES * k if scheme.act_order else 0
        return codes + n * groups * tables + index + extra

    def pack(
        self, weight: CanonicalWeight, scheme: WeightScheme, static: Mapping[str, torch.Tensor] | None = None
    ) -> Packed:
        from vllm_quant_kernels import dequantized_linear  # noqa: F401  (defines the operator)
        from vllm_quant_kernels.packing import pack_dense

        w = weight.plain()
        codes = w.codes if w.dim > 1 or w.bits == 8 else pack_dense(w.codes, w.bits)
        tensors: Tensors = {
            "": codes, "_scales": w.scales, "_zeros": w.zeros, "_g_idx": w.g_idx,
            "_table": w.table, "_super_scales": w.super_scales,
        }  # fmt: skip
        args = (w.bits, w.group_size, w.kind, w.per_super, w.dim, w.out_features, w.in_features)
        return Packed(self, tensors, w.out_features, args)

    def apply(self, packed: Packed, tensors: Tensors, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        import torch

        return torch.ops.vqp.dequantized_linear(x, *tensors.values(), bias, *packed.args)

    def dequantize(self, packed: Packed, tensors: Tensors) -> torch.Tensor:
        from vllm_quant_kernels.dequantized_linear import PackedCodes

        return PackedCodes(*tensors.values(), *packed.args).rows(0, packed.out_features).dequantize()  # type: ignore[arg-type]
