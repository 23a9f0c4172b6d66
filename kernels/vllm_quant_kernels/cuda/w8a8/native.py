"""Calls of the 8-bit products in ``libvqp_cuda.so``, and the choice among these and other libraries."""

from __future__ import annotations

import ctypes
import functools

import torch

from vllm_quant_kernels.cuda import library as cuda_library
from vllm_quant_kernels.cuda.library import NO_DTYPE
from vllm_quant_kernels.cuda.w8a8 import quantize as cuda_quantize
from vllm_quant_kernels.cuda.w8a8 import torch_gemm as w8a8_torch
from vllm_quant_kernels.cuda.w8a8.activation import FP8, GROUP, INT8, Activations
from vllm_quant_kernels.cuda.w8a8.choice import TABLE, Backend, choose
from vllm_quant_kernels.cuda.w8a8.weight import WeightW8A8
from vllm_quant_kernels.native_call import DTYPES, pointer
from vllm_quant_kernels.shared_library import LibraryError
from vllm_quant_kernels.sizes import round_up

NO_KERNEL = 5  # VQP_CUDA_EDEVICE


class Product(ctypes.Structure):
    """``vqp_cuda_w8a8``."""

    _fields_ = (
        [(name, ctypes.c_void_p) for name in ("x", "y", "w", "w_scales", "w_sums", "x_scales", "x_zeros")]
        + [("bias", ctypes.c_void_p)]
        + [(name, ctypes.c_int64) for name in ("x_stride", "m", "n", "k", "kp", "x_scale_stride")]
        + [(name, ctypes.c_int32) for name in ("kind", "y_dtype", "bias_dtype", "grouped", "promote")]
        + [(name, ctypes.c_int32) for name in ("quantize_x", "symmetric", "batch_invariant", "warpgroups", "dependent")]
    )


class Plan(ctypes.Structure):
    """``vqp_cuda_w8a8_plan``."""

    _fields_ = (
        [(name, ctypes.c_int32) for name in ("tokens", "m_tiles", "n_tiles", "splits", "stages", "shared_bytes")]
        + [(name, ctypes.c_int32) for name in ("clustered", "dependent", "channels", "ctas")]
        + [("workspace_bytes", ctypes.c_int64)]
    )


@functools.cache
def library() -> ctypes.CDLL:
    """``libvqp_cuda.so`` with these calls. Raises LibraryError where it is absent or older."""
    lib = cuda_quantize.library()
    call, plan, raw = ctypes.POINTER(Product), ctypes.POINTER(Plan), ctypes.c_void_p
    try:
        lib.vqp_cuda_w8a8_make_plan.argtypes = [call, plan]
        lib.vqp_cuda_w8a8_run.argtypes = [call, plan, raw, ctypes.c_int64, raw]
        lib.vqp_cuda_w8a8_finish.argtypes = [call, raw, raw]
    except AttributeError as error:
        raise LibraryError(f"{cuda_library.NAME} has no 8-bit products: build it again") from error
    return lib


def _weight_fields(w: WeightW8A8, out: torch.Tensor, bias: torch.Tensor | None) -> dict[str, int | None]:
    return {
        "y": pointer(out),
        "w": pointer(w.codes),
        "w_scales": pointer(w.scales),
        "w_sums": pointer(w.sums),
        "bias": pointer(bias),
        "m": out.shape[0],
        "n": w.n,
        "k": w.k,
        "kp": round_up(w.k, 16),
        "kind": w.kind,
        "y_dtype": DTYPES[out.dtype],
        "bias_dtype": NO_DTYPE if bias is None else DTYPES[bias.dtype],
        "grouped": int(w.blocks),
        "dependent": int(cuda_library.dependent_launch()),
    }


def describe(
    a: Activations,
    out: torch.Tensor,
    w: WeightW8A8,
    bias: torch.Tensor | None,
    promote: bool,
    batch_invariant: bool,
    warpgroups: bool = False,
) -> Product:
    """The call for quantized activations and out (M, N) contiguous; ``warpgroups``: of the kernels for large M."""
    per_row = a.scales.shape[-1] if w.blocks else int(a.scales.numel() > 1 or out.shape[0] == 1)
    return Product(
        **_weight_fields(w, out, bias),
        x=pointer(a.q),
        x_scales=pointer(a.scales),
        x_zeros=pointer(a.zeros),
        x_stride=a.q.shape[1],
        x_scale_stride=per_row,
        promote=int(promote and w.kind == FP8),
        batch_invariant=int(batch_invariant),
        warpgroups=int(warpgroups),
    )


def describe_fused(
    x: torch.Tensor,
    out: torch.Tensor,
    w: WeightW8A8,
    bias: torch.Tensor | None,
    symmetric: bool,
    in_scale: torch.Tensor | None,
    in_zero: torch.Tensor | None,
) -> Product:
    """The call that quantizes x (M, K), with unit column stride, itself."""
    return Product(
        **_weight_fields(w, out, bias),
        x=pointer(x),
        x_scales=pointer(in_scale),
        x_zeros=pointer(in_zero),
        x_stride=x.stride(0) if x.shape[0] > 1 else w.k,
        promote=int(w.kind == FP8),
        quantize_x=1,
        symmetric=int(symmetric),
    )


def plan(call: Product) -> Plan | None:
    """How ``call`` would run on the current device; None: no kernel for it there. Raises ValueError."""
    result = Plan()
    code = library().vqp_cuda_w8a8_make_plan(ctypes.byref(call), ctypes.byref(result))
    if code == NO_KERNEL:
        return None
    cuda_library.check(code)
    return result


def run(call: Product, chosen: Plan, device: torch.device) -> None:
    """Enqueue a planned call on the current stream."""
    size = chosen.workspace_bytes
    workspace = torch.empty(size, dtype=torch.uint8, device=device) if size else None
    stream = torch.cuda.current_stream(device).cuda_stream
    cuda_library.check(
        library().vqp_cuda_w8a8_run(ctypes.byref(call), ctypes.byref(chosen), pointer(workspace), size, stream)
    )


def choice_key(w: WeightW8A8) -> str:
    """The row of choice.TABLE."""
    return "fp8-blocks" if w.blocks else "fp8" if w.kind == FP8 else "int8"


def finish(call: Product, sums: torch.Tensor, device: torch.device) -> None:
    """Enqueue scales, zero points and bias of ``call`` on the sums (M, N) of its codes."""
    stream = torch.cuda.current_stream(device).cuda_stream
    cuda_library.check(library().vqp_cuda_w8a8_finish(ctypes.byref(call), pointer(sums), stream))


@functools.cache
def available(device: torch.device) -> frozenset[Backend]:
    """The implementations of the table that run on the GPU ``device`` with what is installed."""
    wanted = tuple({backend for entries in TABLE.values() for _, backends in entries for backend in backends})
    found = w8a8_torch.available(device, wanted)
    found |= {"fused", "own", "wgmma"} if serves_wgmma(device) else {"fused", "own"}
    return frozenset(found)


def serves_wgmma(device: torch.device) -> bool:
    """Whether the kernels for large M run there: Hopper, with the library's code for sm_90a."""
    probe = Product(m=128, n=128, k=128, kp=128, x_stride=128, x_scales=16, kind=INT8, y_dtype=1, warpgroups=1)
    with torch.cuda.device(device):
        return plan(probe) is not None


def _own(call: Product, device: torch.device) -> None:
    chosen = plan(call)
    if chosen is None and call.warpgroups:
        raise ValueError("the kernels for large M need a Hopper GPU, and do not keep FP8 batch-invariant")
    if chosen is None:
        raise ValueError("FP8 products need a GPU of compute capability 8.9 or newer; use 16-bit activations")
    run(call, chosen, device)


def multiply(
    backend: Backend,
    a: Activations,
    w: WeightW8A8,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    promote: bool = True,
    batch_invariant: bool = False,
) -> torch.Tensor:
    """Enqueue the product of codes into out (M, N) by ``backend``, which must serve it here ("fused" is "own").

    Raises:
        ValueError: it does not; the device has no FP8 tensor cores.
    """
    if backend == "rowwise":
        return w8a8_torch.rowwise(a, w, bias, out, promote)
    call = describe(a, out, w, bias, promote, batch_invariant, backend == "wgmma")
    if backend == "cublaslt":
        finish(call, w8a8_torch.cublaslt_sums(a.q, w.codes, promote), out.device)
    else:
        _own(call, out.device)
    return out


def linear(
    x: torch.Tensor,
    w: WeightW8A8,
    bias: torch.Tensor | None = None,
    symmetric: bool = True,
    in_scale: torch.Tensor | None = None,
    in_zero: torch.Tensor | None = None,
    promote: bool = True,
    batch_invariant: bool = False,
    backend: Backend | None = None,
) -> torch.Tensor:
    """See :func:`vllm_quant_kernels.cuda.w8a8.ops.linear_w8a8`; ``backend`` overrides the table.

    Raises:
        ValueError: the current GPU has no FP8 tensor cores.
    """
    rows = x.reshape(-1, w.k)
    if rows.stride(-1) != 1 and rows.numel():
        rows = rows.contiguous()
    out = torch.empty((*x.shape[:-1], w.n), dtype=x.dtype, device=x.device)
    if not out.numel():
        return out
    flat, bias = out.view(-1, w.n), None if bias is None else bias.contiguous()
    if backend is None:
        bf16, kinds = x.dtype == torch.bfloat16, available(x.device)
        backend = choose(choice_key(w), rows.shape[0], w.n, w.k, batch_invariant, bf16, kinds)
    with torch.cuda.device(x.device):
        if backend == "fused":
            call = describe_fused(rows, flat, w, bias, symmetric, in_scale, in_zero)
            chosen = plan(call)
            if chosen is not None:
                run(call, chosen, x.device)
                return out
        group = GROUP if w.blocks else 0
        a = cuda_quantize.run(rows, w.kind, symmetric, in_scale, in_zero, group)
        multiply(backend, a, w, bias, flat, promote, batch_invariant)
    return out
