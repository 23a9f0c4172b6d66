"""The 8-bit CUDA kernels on the CPU, through the emulator library of :mod:`tests.cuda.emulated`."""

from __future__ import annotations

import ctypes

import torch

from tests.cuda import emulated
from vllm_quant_kernels import cuda_quantize
from vllm_quant_kernels.activation import Activations
from vllm_quant_kernels.cuda_library import check

SHARED = 99 << 10


def filled(tensor: torch.Tensor) -> torch.Tensor:
    """The same shape at an aligned address, every byte 0xFF: what nobody writes shows."""
    store = torch.full((tensor.numel() * tensor.element_size() + 256,), 0xFF, dtype=torch.uint8)
    start = -store.data_ptr() % 256
    return store[start : start + tensor.numel() * tensor.element_size()].view(tensor.dtype).view(tensor.shape)


def quantize(
    x: torch.Tensor,
    kind: int,
    symmetric: bool = True,
    in_scale: torch.Tensor | None = None,
    in_zero: torch.Tensor | None = None,
    group: int = 0,
    smooth: torch.Tensor | None = None,
    seed: int = 0,
    shared_limit: int = SHARED,
) -> Activations:
    """The kernel's codes and scales of x (M, K). Raises EmulatorFault."""
    blank = cuda_quantize.empty_activations(x, kind, symmetric, in_scale, in_zero, group)
    out = blank
    if in_scale is None:
        out = Activations(filled(blank.q), filled(blank.scales), None if symmetric else filled(blank.zeros))  # type: ignore[arg-type]
    else:
        out = Activations(filled(blank.q), in_scale, in_zero)
    call = cuda_quantize.describe(x, out, kind, in_scale, in_zero, group, smooth)
    emulated._begin([x, smooth, in_scale, in_zero, out.q, out.scales, out.zeros], seed, True)
    check(emulated.library().vqp_emulator_quantize(ctypes.byref(call), shared_limit))
    emulated._end()
    return out
