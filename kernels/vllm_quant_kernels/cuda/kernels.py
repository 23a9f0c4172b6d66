"""The CUDA kernels in the registry. Torch is imported where a weight is packed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from vllm_quant_kernels import env, proof
from vllm_quant_kernels import kernel_sizes as sizes
from vllm_quant_kernels.kernel import Device, Kernel, Operation, Packed, Proof, Tensors
from vllm_quant_kernels.reasons import int8_gemm, int_or_float, plain_scales
from vllm_quant_kernels.scheme import E4M3, WeightScheme
from vllm_quant_kernels.sizes import round_up

if TYPE_CHECKING:
    import torch

    from vllm_quant_kernels.canonical import CanonicalWeight
    from vllm_quant_kernels.cuda.weight import PackedCuda

# cuda/layout.py and cuda/w8a8/weight.py.
ROW_TILE, SLAB, GROUP, CODE_ALIGNMENT = 16, 64, 128, 16
# K up to which sums of 8-bit products stay exact.
MAX_W8A8_K = (1 << 17) - 16
FP8_CORES = (8, 9)


def unusable(device: Device, dtype: str) -> str | None:
    """Why no CUDA kernel of this project runs there: the device or dtype is not one of its."""
    if device.capability is not None and device.capability < (8, 0):
        return f"compute capability {device.capability[0]}.{device.capability[1]}, below 8.0"
    return None if dtype in ("bfloat16", "float16") else f"activations in {dtype}"


class CudaWeightOnly(Kernel):
    """``vqp::wna16_linear_cuda``: 16-bit activations, integers of 2 to 8 bits or FP8 E4M3."""

    name = "cuda-wna16"
    device = "cuda"
    priority = 100
    proof: Proof = "unproven"

    def label(self, scheme: WeightScheme) -> str:
        return f"vqp W{scheme.bits}A16"

    def can_run(self, scheme: WeightScheme, n: int, k: int, device: Device, dtype: str = "bfloat16") -> str | None:
        reason = unusable(device, dtype) or int_or_float(scheme, (E4M3,)) or plain_scales(scheme)
        return reason or proof.refused(self.name, scheme, device)

    def packed_bytes(self, scheme: WeightScheme, n: int, k: int, full_k: int | None = None, itemsize: int = 2) -> int:
        groups = sizes.group_count(scheme, k, full_k)
        rows, size, permutation = round_up(n, ROW_TILE), scheme.group_of(full_k or k), 0
        if groups == 1:
            columns, blocks = round_up(k, SLAB), 1
        elif size % ROW_TILE == 0 and not scheme.act_order:
            columns = round_up(k, SLAB)
            blocks = -(-columns // _power_of_two(size))
        else:
            ends = sizes.run_ends(scheme, k, full_k)
            columns, combined = round_up(ends[-1], SLAB), 0
            for end in ends[:-1]:
                combined |= end
            blocks = -(-columns // _power_of_two(min(_power_of_two(combined), 1 << (columns - 1).bit_length())))
            permutation = sizes.INDEX_BYTES * columns
        tables = sizes.scale_bytes(scheme, itemsize) + sizes.zero_bytes(scheme)
        return rows * columns * scheme.bits // 8 + rows * blocks * tables + permutation

    def packed(self, weight: CanonicalWeight) -> PackedCuda:
        """The weight in the layout of these kernels. Raises as ``pack`` does."""
        from vllm_quant_kernels.cuda import library
        from vllm_quant_kernels.cuda.pack import pack_cuda

        library.load()
        return pack_cuda(weight)

    def pack(
        self, weight: CanonicalWeight, scheme: WeightScheme, static: Mapping[str, torch.Tensor] | None = None
    ) -> Packed:
        from vllm_quant_kernels.cuda import ops  # noqa: F401  (defines the operators)

        p = self.packed(weight)
        tensors: Tensors = {"": p.data, "_scales": p.scales, "_zeros": p.zeros, "_perm": p.perm}
        return Packed(self, tensors, p.n, (p.kind, p.group_size, p.n, p.k, env.batch_invariant()))

    def apply(self, packed: Packed, tensors: Tensors, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        import torch

        t = tensors
        return torch.ops.vqp.wna16_linear_cuda(x, t[""], t["_scales"], t["_zeros"], t["_perm"], bias, *packed.args)

    def dequantize(self, packed: Packed, tensors: Tensors) -> torch.Tensor:
        from vllm_quant_kernels.cuda.pack import dequantize_cuda
        from vllm_quant_kernels.cuda.weight import PackedCuda

        data, scales = tensors[""], tensors["_scales"]
        assert data is not None
        assert scales is not None
        return dequantize_cuda(PackedCuda(data, scales, tensors["_zeros"], tensors["_perm"], *packed.args[:-1]))


class CudaExperts(CudaWeightOnly):
    """``vqp::wna16_experts_cuda``: the grouped form. ``packed`` is one expert; cuda/stack.py stacks them."""

    name = "cuda-experts"
    operation: Operation = "experts"


class CudaW8A8(Kernel):
    """``vqp::w8a8_linear_cuda``: activations quantized to the type of the weight, per token, per block or statically.

    INT8 as on a CPU. FP8 where the checkpoint asks for FP8 activations, the GPU has FP8 tensor cores (compute
    capability 8.9) and VQP_CUDA_FP8 does not ask for 16-bit activations.
    """

    name = "cuda-w8a8"
    device = "cuda"
    priority = 200
    proof: Proof = "unproven"

    def label(self, scheme: WeightScheme) -> str:
        return "vqp W8A8"

    def can_run(self, scheme: WeightScheme, n: int, k: int, device: Device, dtype: str = "bfloat16") -> str | None:
        reason = unusable(device, dtype) or plain_scales(scheme)
        if reason is None and k > MAX_W8A8_K:
            reason = f"K = {k} above {MAX_W8A8_K}"
        reason = reason or (fp8_gemm(scheme, device) if scheme.value == E4M3 else int8_gemm(scheme))
        return reason or proof.refused(self.name, scheme, device)

    def refuses(self, weight: CanonicalWeight) -> str | None:
        from vllm_quant_kernels.cuda.w8a8.weight import serves

        return None if serves(weight) else "scales that are not of whole 128 x 128 blocks, or zero points"

    def packed_bytes(self, scheme: WeightScheme, n: int, k: int, full_k: int | None = None, itemsize: int = 2) -> int:
        blocks = scheme.block is not None and k > GROUP
        scales = -(-n // GROUP) * -(-k // GROUP) if blocks else n
        return (
            n * round_up(k, CODE_ALIGNMENT) + 4 * scales + (4 * n if scheme.is_int else 0) + sizes.static_bytes(scheme)
        )

    def pack(
        self, weight: CanonicalWeight, scheme: WeightScheme, static: Mapping[str, torch.Tensor] | None = None
    ) -> Packed:
        from vllm_quant_kernels.cuda.w8a8 import native, ops  # noqa: F401  (ops defines the operators)
        from vllm_quant_kernels.cuda.w8a8.activation import FP8
        from vllm_quant_kernels.cuda.w8a8.weight import make_weight
        from vllm_quant_kernels.static_range import static_int8

        native.library()
        act = scheme.activation
        assert act is not None
        w = make_weight(weight)
        symmetric, scale, zero = act.symmetric or w.kind == FP8, None, None
        if not act.dynamic:
            scale, zero = static_int8(static or {}, symmetric)
            scale = scale.to(w.codes.device)
            zero = None if zero is None else zero.to(w.codes.device)
        tensors: Tensors = {"": w.codes, "_scales": w.scales, "_sums": w.sums, "_in_scale": scale, "_in_zero": zero}
        promote = not env.switch("VQP_CUDA_FP8_FAST")
        return Packed(self, tensors, w.n, (symmetric, promote, env.batch_invariant(), w.n, w.k))

    def apply(self, packed: Packed, tensors: Tensors, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        import torch

        t = tensors
        return torch.ops.vqp.w8a8_linear_cuda(
            x, t[""], t["_scales"], t["_sums"], bias, t["_in_scale"], t["_in_zero"], *packed.args
        )

    def dequantize(self, packed: Packed, tensors: Tensors) -> torch.Tensor:
        from vllm_quant_kernels.cuda.w8a8.activation import FP8, INT8
        from vllm_quant_kernels.cuda.w8a8.weight import WeightW8A8, dequantize_weight

        codes, scales, sums = tensors[""], tensors["_scales"], tensors["_sums"]
        assert codes is not None
        assert scales is not None
        return dequantize_weight(WeightW8A8(codes, scales, sums, FP8 if sums is None else INT8, *packed.args[-2:]))


def _power_of_two(value: int) -> int:
    """The greatest power of two that divides ``value``."""
    return value & -value


def fp8_gemm(scheme: WeightScheme, device: Device) -> str | None:
    """None where the scheme is that of FP8 GEMMs on ``device``: scales per channel, or per block of 128 x 128."""
    act = scheme.activation
    if act is None or act.value != E4M3:
        return f"FP8 weights with {'16-bit' if act is None else act.value.name} activations"
    if env.choice("VQP_CUDA_FP8") == "w8a16":
        return "VQP_CUDA_FP8 is w8a16"
    if device.capability is not None and device.capability < FP8_CORES:
        return "no FP8 tensor cores (compute capability 8.9)"
    if scheme.act_order:
        return "act-order"
    if scheme.block is None:
        if scheme.group_size > 0:
            return f"groups of {scheme.group_size} input features"
        return None if act.strategy in ("token", "tensor") else f"activation scales per {act.strategy}"
    if scheme.block != (GROUP, GROUP):
        return f"blocks of {scheme.block[0]} x {scheme.block[1]}"
    if act.strategy == "group" and act.group_size == GROUP and act.dynamic:
        return None
    return "blocks without dynamic activation scales per 128 input features"
