"""``vqp::quantize_cuda``: activation quantization on a GPU. On a CPU it computes :mod:`.activation`."""

from __future__ import annotations

import ctypes
import functools

import torch

from vllm_quant_kernels.cuda import library as cuda_library
from vllm_quant_kernels.cuda.w8a8 import activation
from vllm_quant_kernels.cuda.w8a8.activation import DTYPES as CODE_DTYPES
from vllm_quant_kernels.cuda.w8a8.activation import Activations
from vllm_quant_kernels.native_call import DTYPES, pointer
from vllm_quant_kernels.shared_library import LibraryError
from vllm_quant_kernels.sizes import round_up


class Quantize(ctypes.Structure):
    """``vqp_cuda_quantize``."""

    _fields_ = (
        [(name, ctypes.c_void_p) for name in ("x", "in_scale", "in_zero", "q", "scales", "zeros")]
        + [(name, ctypes.c_int64) for name in ("m", "k", "x_stride", "q_stride", "scale_stride")]
        + [(name, ctypes.c_int32) for name in ("x_dtype", "kind", "group_size")]
    )


@functools.cache
def library() -> ctypes.CDLL:
    """``libvqp_cuda.so`` with the calls of this module. Raises LibraryError where it is absent or older."""
    lib = cuda_library.load()
    try:
        lib.vqp_cuda_quantize_run.argtypes = [ctypes.POINTER(Quantize), ctypes.c_void_p]
    except AttributeError as error:
        raise LibraryError(f"{cuda_library.NAME} has no 8-bit kernels: build it again") from error
    return lib


def empty_activations(
    x: torch.Tensor, kind: int, symmetric: bool, in_scale: torch.Tensor | None, in_zero: torch.Tensor | None, group: int
) -> Activations:
    """Where the result of x (M, K) goes: codes, and scales and zero points unless they are static."""
    m, k = x.shape
    q = x.new_empty((m, round_up(k, 16)), dtype=CODE_DTYPES[kind])
    if in_scale is not None:
        return Activations(q, in_scale, in_zero)
    if group:
        return Activations(q, x.new_empty((-(-k // group), round_up(m, 4)), dtype=torch.float32), None)
    zeros = None if symmetric else x.new_empty(m, dtype=torch.int32)
    return Activations(q, x.new_empty(m, dtype=torch.float32), zeros)


def describe(
    x: torch.Tensor,
    out: Activations,
    kind: int,
    in_scale: torch.Tensor | None,
    in_zero: torch.Tensor | None,
    group: int,
) -> Quantize:
    """The call for x (M, K) with unit column stride."""
    static = in_scale is not None
    return Quantize(
        x=pointer(x),
        in_scale=pointer(in_scale),
        in_zero=pointer(in_zero),
        q=pointer(out.q),
        scales=None if static else pointer(out.scales),
        zeros=None if static else pointer(out.zeros),
        m=x.shape[0],
        k=x.shape[1],
        x_stride=x.stride(0) if x.shape[0] > 1 else x.shape[1],
        q_stride=out.q.shape[1],
        scale_stride=out.scales.shape[1] if group else 0,
        x_dtype=DTYPES[x.dtype],
        kind=kind,
        group_size=group,
    )


def check_arguments(
    x: torch.Tensor,
    kind: int,
    symmetric: bool,
    in_scale: torch.Tensor | None,
    in_zero: torch.Tensor | None,
    group: int,
) -> None:
    """Refuse what the kernels do not read. Raises ValueError."""
    activation.check(kind, symmetric, in_scale, in_zero, group)
    if x.dtype not in (torch.bfloat16, torch.float16) or x.ndim != 2:
        raise ValueError(f"x must be bf16 or fp16 (M, K), got {x.dtype} {tuple(x.shape)}")
    for name, tensor, dtype in (("in_scale", in_scale, torch.float32), ("in_zero", in_zero, torch.int32)):
        if tensor is not None and (tensor.dtype != dtype or tensor.numel() != 1):
            raise ValueError(f"{name} must be {dtype} (1,), got {tensor.dtype} {tuple(tensor.shape)}")


def run(
    x: torch.Tensor,
    kind: int,
    symmetric: bool,
    in_scale: torch.Tensor | None,
    in_zero: torch.Tensor | None,
    group: int,
) -> Activations:
    """Enqueue the quantization of x (M, K) on the current stream of its GPU."""
    check_arguments(x, kind, symmetric, in_scale, in_zero, group)
    x = x if x.stride(-1) == 1 else x.contiguous()
    out = empty_activations(x, kind, symmetric, in_scale, in_zero, group)
    if x.shape[0]:
        call = describe(x, out, kind, in_scale, in_zero, group)
        with torch.cuda.device(x.device):
            stream = torch.cuda.current_stream(x.device).cuda_stream
            cuda_library.check(library().vqp_cuda_quantize_run(ctypes.byref(call), stream))
    return out


_LIB = torch.library.Library("vqp", "FRAGMENT")
_LIB.define(
    "quantize_cuda(Tensor x, int kind, bool symmetric, Tensor? in_scale, Tensor? in_zero, int group) "
    "-> (Tensor, Tensor, Tensor)"
)
Outputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _outputs(a: Activations, in_scale: torch.Tensor | None) -> Outputs:
    """An operator may not return None, nor what it was given: empty tensors stand for these."""
    nothing = a.q.new_empty(0, dtype=torch.float32)
    dynamic = in_scale is None
    zeros = a.zeros if dynamic and a.zeros is not None else nothing.to(torch.int32)
    return a.q, a.scales if dynamic else nothing, zeros


def _cuda(x, kind, symmetric, in_scale, in_zero, group) -> Outputs:  # type: ignore[no-untyped-def]
    return _outputs(run(x, kind, symmetric, in_scale, in_zero, group), in_scale)


def _cpu(x, kind, symmetric, in_scale, in_zero, group) -> Outputs:  # type: ignore[no-untyped-def]
    check_arguments(x, kind, symmetric, in_scale, in_zero, group)
    return _outputs(activation.quantize(x, kind, symmetric, in_scale, in_zero, group), in_scale)


def _fake(x, kind, symmetric, in_scale, in_zero, group) -> Outputs:  # type: ignore[no-untyped-def]
    return _outputs(empty_activations(x, kind, symmetric, in_scale, in_zero, group), in_scale)


_LIB.impl("quantize_cuda", _cuda, "CUDA")
_LIB.impl("quantize_cuda", _cpu, "CPU")
torch.library.register_fake("vqp::quantize_cuda", _fake, lib=_LIB)


def quantize_cuda(
    x: torch.Tensor,
    kind: int,
    symmetric: bool = True,
    in_scale: torch.Tensor | None = None,
    in_zero: torch.Tensor | None = None,
    group: int = 0,
) -> Activations:
    """:func:`.activation.quantize` where x is. Raises ValueError as that does."""
    q, scales, zeros = torch.ops.vqp.quantize_cuda(x, kind, symmetric, in_scale, in_zero, group)
    if in_scale is not None:
        return Activations(q, in_scale, in_zero)
    return Activations(q, scales, None if symmetric else zeros)
