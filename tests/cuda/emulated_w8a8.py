"""The 8-bit CUDA kernels on the CPU, through the emulator library of :mod:`tests.cuda.emulated`."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import torch

from tests.cuda import emulated
from vllm_quant_kernels.cuda.library import check
from vllm_quant_kernels.cuda.w8a8 import activation
from vllm_quant_kernels.cuda.w8a8 import native as w8a8_native
from vllm_quant_kernels.cuda.w8a8 import quantize as cuda_quantize
from vllm_quant_kernels.cuda.w8a8.activation import Activations
from vllm_quant_kernels.cuda.w8a8.weight import WeightW8A8

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
    call = cuda_quantize.describe(x, out, kind, in_scale, in_zero, group)
    emulated._begin([x, in_scale, in_zero, out.q, out.scales, out.zeros], seed, True)
    check(emulated.library().vqp_emulator_quantize(ctypes.byref(call), shared_limit))
    emulated._end()
    return out


def make_plan(call: w8a8_native.Product, device: emulated.Device, fp8: bool = True) -> w8a8_native.Plan:
    plan = w8a8_native.Plan()
    args = (ctypes.byref(call), ctypes.byref(device), int(fp8), ctypes.byref(plan))
    check(emulated.library().vqp_emulator_w8a8_plan(*args))
    return plan


def run(
    call: w8a8_native.Product,
    plan: w8a8_native.Plan,
    tensors: list[torch.Tensor | None],
    seed: int = 0,
    late_copies: bool = True,
) -> None:
    """Run a planned call whose pointers lie in ``tensors``. Raises EmulatorFault."""
    workspace = filled(torch.empty(plan.workspace_bytes, dtype=torch.uint8))
    # What a dependent launch may read before the preceding kernel has ended.
    static = (call.x_scales, call.x_zeros) if call.quantize_x else ()
    constants = (call.w, call.w_scales, call.w_sums, call.bias, *static)
    emulated._begin([*tensors, workspace], seed, late_copies, constants)
    emulated.library().vqp_emulator_w8a8_run(
        ctypes.byref(call), ctypes.byref(plan), ctypes.c_void_p(workspace.data_ptr())
    )
    emulated._end()


def place(w: WeightW8A8) -> WeightW8A8:
    """The weight with its codes aligned as CUDA's allocator aligns."""
    codes = filled(w.codes)
    codes.view(torch.uint8).copy_(w.codes.view(torch.uint8))
    return replace(w, codes=codes)


def force_splits(plan: w8a8_native.Plan, call: w8a8_native.Product, splits: int, device: emulated.Device) -> None:
    plan.splits, plan.clustered = splits, int(bool(device.clusters) and splits > 1)
    rows = plan.m_tiles * plan.tokens
    plan.workspace_bytes = 0 if splits == 1 or plan.clustered else rows * (splits * call.n * 4 + 8)


def force_wide(
    plan: w8a8_native.Plan, call: w8a8_native.Product, channels: int, cluster: int, device: emulated.Device
) -> None:
    plan.channels, plan.clustered = channels, int(cluster > 1)
    plan.n_tiles = -(-call.n // channels)
    tiles = -(-plan.m_tiles // cluster) * cluster * plan.n_tiles
    plan.ctas = min(tiles, device.sms // cluster * cluster)
    check(emulated.library().vqp_emulator_w8a8_wide_shared(ctypes.byref(plan)))


def linear(
    x: torch.Tensor,
    w: WeightW8A8,
    bias: torch.Tensor | None = None,
    fused: bool = False,
    symmetric: bool = True,
    in_scale: torch.Tensor | None = None,
    in_zero: torch.Tensor | None = None,
    promote: bool = False,
    device: emulated.Device = emulated.ONE_BLOCK,
    splits: int = 0,
    batch_invariant: bool = False,
    seed: int = 0,
    late_copies: bool = True,
    dependent: bool = True,
    warpgroups: bool = False,
    channels: int = 0,
    cluster: int = 0,
) -> tuple[torch.Tensor, w8a8_native.Plan]:
    """x (M, K) through quantization and GEMM, by emulating every thread. ``channels`` and ``cluster`` replace the
    plan's choice of the kernels with warpgroups."""
    w = place(w)
    out = torch.full((x.shape[0], w.n), torch.nan, dtype=x.dtype)
    if fused:
        call = w8a8_native.describe_fused(x, out, w, bias, symmetric, in_scale, in_zero)
        tensors = [x, in_scale, in_zero]
    else:
        a = activation.quantize(x, w.kind, symmetric, in_scale, in_zero, 128 if w.blocks else 0)
        scales = filled(a.scales)
        scales.copy_(a.scales)
        q = filled(a.q)
        q.view(torch.uint8).copy_(a.q.view(torch.uint8))
        a = Activations(q, scales, a.zeros)
        call = w8a8_native.describe(a, out, w, bias, promote, batch_invariant, warpgroups)
        tensors = [a.q, a.scales, a.zeros]
    call.dependent = int(dependent)
    plan = make_plan(call, device)
    if channels:
        force_wide(plan, call, channels, cluster, device)
    if splits:
        force_splits(plan, call, splits, device)
        check(emulated.library().vqp_emulator_w8a8_shared(ctypes.byref(call), ctypes.byref(plan)))
    run(call, plan, [*tensors, out, w.codes, w.scales, w.sums, bias], seed, late_copies)
    return out, plan
