"""The contenders of a linear layer on a CPU: ours in every format, in-tree vLLM's and PyTorch's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from vllm_quant_kernels.canonical import CanonicalWeight
from vllm_quant_kernels.kernel import Device
from vllm_quant_kernels.registry import choose
from vllm_quant_kernels.scheme import E4M3, PER_CHANNEL, ActivationScheme, Int, WeightScheme
from vllm_quant_kernels.torch_device import dtype_name
from vllm_quant_plugin.bench.measure import COLD_BYTES, Call, Contender, copies_for
from vllm_quant_plugin.formats.bits import pack_dense
from vllm_quant_plugin.rtn import quantize_fp8, quantize_int


@dataclass(frozen=True)
class Source:
    """What is not yet a contender: a computation on one fresh copy of the weights, per call of ``make``."""

    name: str
    nbytes: int
    make: Callable[[], Call]

    def rotate(self, cold_bytes: int) -> Contender:
        """A contender over as many copies as keep the weights out of the caches."""
        return Contender(self.name, [self.make() for _ in range(copies_for(self.nbytes, cold_bytes))], self.nbytes)


def torch_bf16(weight: torch.Tensor, x: torch.Tensor) -> Source:
    """torch.nn.functional.linear in bfloat16, which is oneDNN."""

    def make() -> Call:
        copy = weight.clone()
        return lambda: torch.nn.functional.linear(x, copy)

    return Source("torch BF16", weight.nbytes, make)


def ours(weight: CanonicalWeight, scheme: WeightScheme, x: torch.Tensor, suffix: str = "") -> Source:
    """The kernel that this machine's registry chooses for ``scheme``."""
    kernel = choose(
        scheme, weight.out_features, weight.in_features, Device("cpu"), dtype_name(x.dtype), weight=weight
    ).kernel
    packed = kernel.pack(weight, scheme)
    codes = packed.tensors[""]
    assert codes is not None

    def make() -> Call:
        tensors = {**packed.tensors, "": codes.clone()}
        return lambda: kernel.apply(packed, tensors, x, None)

    return Source(kernel.label(scheme) + suffix, packed.nbytes, make)


def weight_only(weight: torch.Tensor, x: torch.Tensor, bits: int, group_size: int = 128) -> Source:
    """Integer weights with zero points and 16-bit activations."""
    canonical = quantize_int(weight, bits, group_size, symmetric=False, scale_dtype=torch.bfloat16)
    return ours(canonical, WeightScheme(Int(bits), group_size, symmetric=False), x, f" g{group_size}")


def fp8_weight_only(weight: torch.Tensor, x: torch.Tensor) -> Source:
    """FP8 weights with one scale per channel and 16-bit activations."""
    return ours(quantize_fp8(weight), WeightScheme(E4M3, PER_CHANNEL), x, " FP8")


def w8a8(weight: torch.Tensor, x: torch.Tensor) -> Source:
    """INT8 weights with dynamic symmetric activations."""
    scheme = WeightScheme(Int(8), PER_CHANNEL, activation=ActivationScheme(Int(8)))
    return ours(quantize_int(weight, 8), scheme, x)


def in_tree_w4a16(weight: torch.Tensor, x: torch.Tensor, group_size: int = 128) -> Source:
    """In-tree ``cpu_gemm_wna16`` (vllm/model_executor/kernels/linear/mixed_precision/cpu.py)."""
    from vllm import _custom_ops

    canonical = quantize_int(weight, 4, group_size, scale_dtype=torch.bfloat16)
    data, scales = in_tree_layout(canonical), canonical.scales.t().contiguous()

    def make() -> Call:
        copy = data.clone()
        return lambda: _custom_ops.cpu_gemm_wna16(x, copy, scales, None, None, 8, "vec")

    return Source("in-tree W4A16", data.nbytes + scales.nbytes, make)


def has_in_tree_w4a16() -> bool:
    """Whether vLLM's extension for this CPU has the operator: the one for CPUs without AVX-512 has not."""
    import vllm._custom_ops  # noqa: F401  (loads the extension)

    return hasattr(torch.ops._C, "cpu_gemm_wna16")


def in_tree_layout(weight: CanonicalWeight) -> torch.Tensor:
    """4-bit codes in the layout of ``cpu_gemm_wna16``: 16 output channels a block, K rows of two words each."""
    n, k = weight.codes.shape
    words = pack_dense(weight.codes.t().contiguous(), 4)
    return words.view(k, n // 16, 2).permute(1, 0, 2).reshape(n // 16, k * 2).contiguous()


def in_tree_w8a8(weight: torch.Tensor, x: torch.Tensor) -> Source:
    """In-tree oneDNN INT8 with dynamic per-token activations (kernels/linear/scaled_mm/cpu.py)."""
    from vllm import _custom_ops

    canonical = quantize_int(weight, 8)
    codes = (canonical.codes ^ 0x80).view(torch.int8)

    def make() -> Call:
        handler = _custom_ops.create_onednn_scaled_mm(codes.t(), canonical.scales, x.dtype, True, False, 32)
        out = torch.empty(x.shape[0], weight.shape[0], dtype=x.dtype)

        # The handler holds bare pointers to the scales: the closure keeps them alive.
        def call(_keep: object = canonical.scales) -> object:
            quantized, scale, _ = _custom_ops.onednn_scaled_int8_quant(x)
            return _custom_ops.onednn_scaled_mm(handler, quantized, out, scale, None, None, None)

        return call

    return Source("in-tree W8A8 (oneDNN)", codes.nbytes, make)


def cpu_contenders(n: int, k: int, m: int, *, with_vllm: bool = True, cold_bytes: int = COLD_BYTES) -> list[Contender]:
    """All contenders for an (M, K) x (N, K) linear layer with random BF16 weights."""
    generator = torch.Generator().manual_seed(0)
    weight = (torch.randn(n, k, generator=generator) / k**0.5).bfloat16()
    x = torch.randn(m, k, generator=generator).bfloat16()
    found = [torch_bf16(weight, x)]
    found += [weight_only(weight, x, bits) for bits in (2, 3, 4, 8)]
    found += [fp8_weight_only(weight, x), w8a8(weight, x)]
    if with_vllm:
        found += [in_tree_w4a16(weight, x)] if has_in_tree_w4a16() else []
        found += [in_tree_w8a8(weight, x)]
    return [source.rotate(cold_bytes) for source in found]
