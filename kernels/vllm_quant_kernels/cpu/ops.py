"""The ``vqp::`` operators: torch.library definitions, CPU and fake implementations, and thin helpers.

``torch.library.Library`` is used rather than ``custom_op``, which costs microseconds per call.
Without the native library the operators compute the reference, slowly and exactly.
"""

from __future__ import annotations

import torch

from vllm_quant_kernels import reference
from vllm_quant_kernels.cpu import library, native
from vllm_quant_kernels.cpu.pack import unpack, unpack_int8
from vllm_quant_kernels.cpu.weight import PackedInt8, PackedWeight

_LIB = torch.library.Library("vqp", "FRAGMENT")
_LIB.define(
    "wna16_linear(Tensor x, Tensor data, Tensor scales, Tensor? zeros, Tensor? perm, Tensor? bias, "
    "int kind, int bits, int group_size, int n, int k) -> Tensor"
)
_LIB.define(
    "w4a8_linear(Tensor x, Tensor data, Tensor scales, Tensor? zeros, Tensor? perm, Tensor? bias, "
    "int kind, int bits, int group_size, int n, int k) -> Tensor"
)
_LIB.define(
    "w8a8_linear(Tensor x, Tensor data, Tensor w_scale, Tensor w_sum, Tensor? bias, Tensor? in_scale, "
    "Tensor? in_zero, bool symmetric, int n, int k) -> Tensor"
)


def _check_input(x: torch.Tensor, bias: torch.Tensor | None, n: int, k: int) -> None:
    if x.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise ValueError(f"x must be bf16, fp16 or fp32, got {x.dtype}")
    if x.ndim == 0 or x.shape[-1] != k:
        raise ValueError(f"x must be (..., {k}), got {tuple(x.shape)}")
    if bias is not None and (bias.numel() != n or not bias.is_floating_point()):
        raise ValueError(f"bias must be floating ({n},), got {bias.dtype} {tuple(bias.shape)}")


def _wna16_cpu(
    x: torch.Tensor,
    data: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    perm: torch.Tensor | None,
    bias: torch.Tensor | None,
    kind: int,
    bits: int,
    group_size: int,
    n: int,
    k: int,
) -> torch.Tensor:
    _check_input(x, bias, n, k)
    packed = PackedWeight(data, scales, zeros, perm, kind, bits, group_size, n, k)
    if library.int8_activations() and serves_a8(packed):
        return _weight_only_a8(x, packed, bias)
    if library.available():
        return native.weight_only(x, packed, bias, int8=False)
    return reference.wna16_linear(x, unpack(packed), bias, torch.float32).to(x.dtype)


def _w4a8_cpu(
    x: torch.Tensor,
    data: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    perm: torch.Tensor | None,
    bias: torch.Tensor | None,
    kind: int,
    bits: int,
    group_size: int,
    n: int,
    k: int,
) -> torch.Tensor:
    _check_input(x, bias, n, k)
    packed = PackedWeight(data, scales, zeros, perm, kind, bits, group_size, n, k)
    if not serves_a8(packed):
        raise ValueError(f"INT8 activations need integer weights of 2 to 7 bits, got {bits} bits, kind {kind & 0xFF}")
    return _weight_only_a8(x, packed, bias)


def _weight_only_a8(x: torch.Tensor, packed: PackedWeight, bias: torch.Tensor | None) -> torch.Tensor:
    if library.available():
        return native.weight_only(x, packed, bias, int8=True)
    return reference.w4a8_linear(x, unpack(packed), bias, torch.float32).to(x.dtype)


def _w8a8_cpu(
    x: torch.Tensor,
    data: torch.Tensor,
    w_scale: torch.Tensor,
    w_sum: torch.Tensor,
    bias: torch.Tensor | None,
    in_scale: torch.Tensor | None,
    in_zero: torch.Tensor | None,
    symmetric: bool,
    n: int,
    k: int,
) -> torch.Tensor:
    _check_input(x, bias, n, k)
    if library.available():
        packed = PackedInt8(data, w_scale, w_sum, n, k)
        return native.w8a8_linear(x, packed, bias, in_scale, in_zero, symmetric)
    codes = unpack_int8(data, n, k)
    return reference.w8a8_linear(x, codes, w_scale[:n], bias, in_scale, in_zero, symmetric).to(x.dtype)


def _wna16_fake(x, data, scales, zeros, perm, bias, kind, bits, group_size, n, k):  # type: ignore[no-untyped-def]
    return x.new_empty((*x.shape[:-1], n))


def _w8a8_fake(x, data, w_scale, w_sum, bias, in_scale, in_zero, symmetric, n, k):  # type: ignore[no-untyped-def]
    return x.new_empty((*x.shape[:-1], n))


_LIB.impl("wna16_linear", _wna16_cpu, "CPU")
_LIB.impl("w4a8_linear", _w4a8_cpu, "CPU")
_LIB.impl("w8a8_linear", _w8a8_cpu, "CPU")
torch.library.register_fake("vqp::wna16_linear", _wna16_fake, lib=_LIB)
torch.library.register_fake("vqp::w4a8_linear", _wna16_fake, lib=_LIB)
torch.library.register_fake("vqp::w8a8_linear", _w8a8_fake, lib=_LIB)


def linear(x: torch.Tensor, packed: PackedWeight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Weight-only quantized linear: x (..., K) bf16, fp16 or fp32 to (..., N) of the same dtype.

    Activations are not rounded; products are accumulated in FP32 per group, then scaled. With VQP_CPU_W4A8=1 in
    the environment this is :func:`linear_a8` where that serves the weight.
    """
    return torch.ops.vqp.wna16_linear(
        x,
        packed.data,
        packed.scales,
        packed.zeros,
        packed.perm,
        bias,
        packed.kind,
        packed.bits,
        packed.group_size,
        packed.n,
        packed.k,
    )


def serves_a8(packed: PackedWeight) -> bool:
    """Whether :func:`linear_a8` takes this weight: integers of 2 to 7 bits."""
    return packed.kind & 0xFF == 0 and packed.bits <= 7


def linear_a8(x: torch.Tensor, packed: PackedWeight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """The product of :func:`linear` with x quantized to INT8, one scale per token and run of at most 128 features.

    Faster from a few rows on, and less exact: each activation is off by up to half a step, the largest
    activation of its run / 254. See :func:`reference.quantize_segments`.

    Raises:
        ValueError: the weight has 8 bits or is FP8.
    """
    return torch.ops.vqp.w4a8_linear(
        x,
        packed.data,
        packed.scales,
        packed.zeros,
        packed.perm,
        bias,
        packed.kind,
        packed.bits,
        packed.group_size,
        packed.n,
        packed.k,
    )


def linear_int8(
    x: torch.Tensor,
    packed: PackedInt8,
    bias: torch.Tensor | None = None,
    in_scale: torch.Tensor | None = None,
    in_zero: torch.Tensor | None = None,
    symmetric: bool = True,
) -> torch.Tensor:
    """W8A8 linear: x (..., K) is quantized to INT8 as :func:`reference.quantize_activation` says.

    Args:
        in_scale: None for one scale per token, else the static scale, one element.
        in_zero: the static zero point, one element, or None for 0; only with ``in_scale``.
        symmetric: of the dynamic scheme; ignored with ``in_scale``.
    """
    return torch.ops.vqp.w8a8_linear(
        x, packed.data, packed.scales, packed.sums, bias, in_scale, in_zero, symmetric, packed.n, packed.k
    )
