"""``vqp::w8a8_linear_cuda``: quantize the activations, multiply 8-bit codes, scale. Definition, CUDA and fake
implementations, and a CPU one that computes the same from the same tensors."""

from __future__ import annotations

import torch

from vllm_quant_kernels.cuda.w8a8 import activation
from vllm_quant_kernels.cuda.w8a8 import native as w8a8_native
from vllm_quant_kernels.cuda.w8a8.activation import DTYPES, FP8, GROUP, INT8
from vllm_quant_kernels.cuda.w8a8.weight import WeightW8A8, product
from vllm_quant_kernels.sizes import round_up

_LIB = torch.library.Library("vqp", "FRAGMENT")
_LIB.define(
    "w8a8_linear_cuda(Tensor x, Tensor codes, Tensor scales, Tensor? sums, Tensor? bias, Tensor? in_scale, "
    "Tensor? in_zero, bool symmetric, bool promote, bool batch_invariant, int n, int k) -> Tensor"
)


def _check(
    x: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    sums: torch.Tensor | None,
    bias: torch.Tensor | None,
    n: int,
    k: int,
) -> WeightW8A8:
    """The weight of the arguments, checked against x. Raises ValueError."""
    if x.dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(f"x must be bf16 or fp16, got {x.dtype}")
    if x.ndim == 0 or x.shape[-1] != k:
        raise ValueError(f"x must be (..., {k}), got {tuple(x.shape)}")
    if codes.dtype not in DTYPES.values() or codes.shape != (n, round_up(k, 16)) or not codes.is_contiguous():
        raise ValueError(f"codes must be int8 or float8_e4m3fn ({n}, {round_up(k, 16)}), got {tuple(codes.shape)}")
    kind = INT8 if codes.dtype == torch.int8 else FP8
    if scales.shape not in ((n,), (-(-n // GROUP), -(-k // GROUP))) or scales.dtype != torch.float32:
        raise ValueError(f"scales must be float32 ({n},) or of {GROUP} x {GROUP} blocks, got {tuple(scales.shape)}")
    if kind == INT8 and (sums is None or sums.shape != (n,) or sums.dtype != torch.int32 or scales.ndim != 1):
        raise ValueError("INT8 needs a scale a channel and the sums of the codes, int32")
    if bias is not None and (bias.numel() != n or not bias.is_floating_point()):
        raise ValueError(f"bias must be floating ({n},), got {bias.dtype} {tuple(bias.shape)}")
    return WeightW8A8(codes, scales, sums, kind, n, k)


def _cuda(  # type: ignore[no-untyped-def]
    x, codes, scales, sums, bias, in_scale, in_zero, symmetric, promote, batch_invariant, n, k
) -> torch.Tensor:
    w = _check(x, codes, scales, sums, bias, n, k)
    activation.check(w.kind, symmetric, in_scale, in_zero, GROUP if w.blocks else 0)
    return w8a8_native.linear(x, w, bias, symmetric, in_scale, in_zero, promote, batch_invariant)


def _cpu(  # type: ignore[no-untyped-def]
    x, codes, scales, sums, bias, in_scale, in_zero, symmetric, promote, batch_invariant, n, k
) -> torch.Tensor:
    w = _check(x, codes, scales, sums, bias, n, k)
    rows = x.reshape(-1, k)
    if not rows.shape[0]:
        return x.new_empty((*x.shape[:-1], n))
    a = activation.quantize(rows, w.kind, symmetric, in_scale, in_zero, GROUP if w.blocks else 0)
    return product(a, w, bias).to(x.dtype).view(*x.shape[:-1], n)


def _fake(  # type: ignore[no-untyped-def]
    x, codes, scales, sums, bias, in_scale, in_zero, symmetric, promote, batch_invariant, n, k
) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], n))


_LIB.impl("w8a8_linear_cuda", _cuda, "CUDA")
_LIB.impl("w8a8_linear_cuda", _cpu, "CPU")
torch.library.register_fake("vqp::w8a8_linear_cuda", _fake, lib=_LIB)


def linear_w8a8(
    x: torch.Tensor,
    w: WeightW8A8,
    bias: torch.Tensor | None = None,
    symmetric: bool = True,
    in_scale: torch.Tensor | None = None,
    in_zero: torch.Tensor | None = None,
    promote: bool = True,
    batch_invariant: bool = False,
) -> torch.Tensor:
    """8-bit linear on a GPU: x (..., K) bf16 or fp16 to (..., N) of the same dtype.

    x is quantized as :func:`.activation.quantize` says: with ``in_scale`` (float32, one element)
    and ``in_zero`` (int32, INT8 only), else by its own range, a row at a time, or each 128 columns where the weight
    has block scales. INT8 results are those of exact sums, bit for bit, on every path.

    Args:
        symmetric: of dynamic INT8.
        promote: FP8: add the tensor cores' sums of each 128 columns in FP32 (cuBLASLt: no fast accumulation).
        batch_invariant: a row has the same bits whatever the other rows are.

    Raises:
        ValueError: tensors that do not fit, or FP8 on a GPU below compute capability 8.9.
    """
    return torch.ops.vqp.w8a8_linear_cuda(
        x, w.codes, w.scales, w.sums, bias, in_scale, in_zero, symmetric, promote, batch_invariant, w.n, w.k
    )
