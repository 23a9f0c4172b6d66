"""The CPU kernels in the registry. Torch is imported where a weight is packed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from vllm_quant_kernels import kernel_sizes as sizes
from vllm_quant_kernels.kernel import Device, Kernel, Packed, Tensors
from vllm_quant_kernels.reasons import int8_gemm, int_or_float, plain_scales
from vllm_quant_kernels.scheme import E4M3, E5M2, WeightScheme
from vllm_quant_kernels.sizes import round_up

if TYPE_CHECKING:
    import torch

    from vllm_quant_kernels.canonical import CanonicalWeight

# Rows of every layout are padded to panels of 16 output channels (cpu/layout.py).
PANEL, BLOCK, INT8_BLOCK = 16, 32, 64


class CpuWeightOnly(Kernel):
    """``vqp::wna16_linear``: 16-bit activations, integers of 2 to 8 bits or FP8."""

    name = "cpu-wna16"
    device = "cpu"
    priority = 100

    def label(self, scheme: WeightScheme) -> str:
        return f"vqp W{scheme.bits}A16"

    def can_run(self, scheme: WeightScheme, n: int, k: int, device: Device, dtype: str = "bfloat16") -> str | None:
        return int_or_float(scheme, (E4M3, E5M2)) or plain_scales(scheme)

    def packed_bytes(self, scheme: WeightScheme, n: int, k: int, full_k: int | None = None, itemsize: int = 2) -> int:
        groups = sizes.group_count(scheme, k, full_k)
        size = scheme.group_of(full_k or k)
        columns, permutation = round_up(k, BLOCK), 0
        if (size % 16 and (groups > 1 or scheme.act_order)) or (scheme.act_order and groups > 1):
            columns = round_up(sizes.run_ends(scheme, k, full_k)[-1], BLOCK)
            permutation = sizes.INDEX_BYTES * (columns + groups + 1)
        rows = round_up(n, PANEL)
        tables = sizes.scale_bytes(scheme, itemsize) + sizes.zero_bytes(scheme)
        return rows * columns * scheme.bits // 8 + rows * groups * tables + permutation

    def pack(
        self, weight: CanonicalWeight, scheme: WeightScheme, static: Mapping[str, torch.Tensor] | None = None
    ) -> Packed:
        from vllm_quant_kernels.cpu import ops  # noqa: F401  (defines the operators)
        from vllm_quant_kernels.cpu.pack import pack

        p = pack(weight)
        tensors: Tensors = {"": p.data, "_scales": p.scales, "_zeros": p.zeros, "_perm": p.perm}
        return Packed(self, tensors, p.n, (p.kind, p.bits, p.group_size, p.n, p.k))

    def apply(self, packed: Packed, tensors: Tensors, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        import torch

        t = tensors
        return torch.ops.vqp.wna16_linear(x, t[""], t["_scales"], t["_zeros"], t["_perm"], bias, *packed.args)

    def dequantize(self, packed: Packed, tensors: Tensors) -> torch.Tensor:
        from vllm_quant_kernels.cpu.pack import unpack
        from vllm_quant_kernels.cpu.weight import PackedWeight

        data, scales = tensors[""], tensors["_scales"]
        assert data is not None
        assert scales is not None
        return unpack(PackedWeight(data, scales, tensors["_zeros"], tensors["_perm"], *packed.args)).dequantize()


class CpuW8A8(Kernel):
    """``vqp::w8a8_linear``: activations quantized to INT8 per token, or with a static scale."""

    name = "cpu-w8a8"
    device = "cpu"
    priority = 200

    def label(self, scheme: WeightScheme) -> str:
        return "vqp W8A8"

    def can_run(self, scheme: WeightScheme, n: int, k: int, device: Device, dtype: str = "bfloat16") -> str | None:
        return int8_gemm(scheme) or plain_scales(scheme)

    def refuses(self, weight: CanonicalWeight) -> str | None:
        return "zero points" if weight.zeros is not None else None

    def packed_bytes(self, scheme: WeightScheme, n: int, k: int, full_k: int | None = None, itemsize: int = 2) -> int:
        rows = round_up(n, PANEL)
        return rows * round_up(k, INT8_BLOCK) + 8 * rows + sizes.static_bytes(scheme)

    def pack(
        self, weight: CanonicalWeight, scheme: WeightScheme, static: Mapping[str, torch.Tensor] | None = None
    ) -> Packed:
        import torch

        from vllm_quant_kernels.cpu import ops  # noqa: F401  (defines the operators)
        from vllm_quant_kernels.cpu.pack import pack_int8
        from vllm_quant_kernels.static_range import static_int8

        act = scheme.activation
        assert act is not None
        p = pack_int8((weight.codes ^ 0x80).view(torch.int8), weight.scales)
        scale, zero = (None, None) if act.dynamic else static_int8(static or {}, act.symmetric)
        tensors: Tensors = {"": p.data, "_scales": p.scales, "_sums": p.sums, "_in_scale": scale, "_in_zero": zero}
        return Packed(self, tensors, p.n, (act.symmetric, p.n, p.k))

    def apply(self, packed: Packed, tensors: Tensors, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        import torch

        t = tensors
        return torch.ops.vqp.w8a8_linear(
            x, t[""], t["_scales"], t["_sums"], bias, t["_in_scale"], t["_in_zero"], *packed.args
        )

    def dequantize(self, packed: Packed, tensors: Tensors) -> torch.Tensor:
        from vllm_quant_kernels.cpu.pack import unpack_int8

        data, scales = tensors[""], tensors["_scales"]
        assert data is not None
        assert scales is not None
        _, n, k = packed.args
        return unpack_int8(data, n, k).float() * scales[:n, None]
