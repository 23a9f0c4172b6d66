"""From a planned call of the C interface to launches, as ``kernels/cuda/*.cu`` make them on the host, and their
execution on CPU tensors: the calls of :mod:`tests.cuda.emulated` with another device behind them."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import torch

from tests.cuda import emulated, emulated_w8a8
from tests.cuda.ptx import units
from tests.cuda.ptx.machine import Launch, Machine
from tests.cuda.ptx.memory import GlobalMemory
from tests.cuda.ptx.tensor_maps import TensorMap
from tests.cuda.ptx.translate import Program
from vllm_quant_kernels.cuda.library import Linear, Plan
from vllm_quant_kernels.cuda.w8a8 import native, quantize
from vllm_quant_kernels.cuda.w8a8.activation import Activations

THREADS, WIDE_THREADS = 256, 384
HALF, F32 = 2, 0  # VQP_CUDA_F16, VQP_CUDA_F32
FP8 = 9
Tensors = list[torch.Tensor | None]
Programs = Callable[[str, str], Program]


@dataclass
class Device:
    """``target``: what kernels are compiled for. ``programs``: where they come from, so that tests can plant errors.
    ``launched``: the names of kernels, as they were launched."""

    target: str = "sm_90a"
    seed: int = 0
    programs: Programs = units.program
    launched: list[str] | None = None

    def execute(self, kernel: str, launch: Launch, tensors: Tensors, constants: tuple[int | None, ...] = ()) -> None:
        if self.launched is not None:
            self.launched.append(kernel)
        memory = GlobalMemory()
        for number, tensor in enumerate(tensors):
            if tensor is None or not tensor.numel():
                continue
            span = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
            at = tensor.data_ptr()
            if all(r.address != at for r in memory.ranges):
                memory.add(f"tensor {number}", at, span * tensor.element_size(), at in constants)
        Machine(self.programs(kernel, self.target), memory, launch, self.seed).run()

    # The calls

    def linear(self, call: Linear, plan: Plan, tensors: Tensors, seed: int = 0, late_copies: bool = True) -> None:
        """As ``vqp_cuda_linear_run``."""
        workspace = torch.full((plan.workspace_bytes // 4,), torch.nan)
        lib, out = emulated.library(), ctypes.create_string_buffer(1024)
        pointer = ctypes.c_void_p(workspace.data_ptr() if workspace.numel() else 0)
        size = lib.vqp_parameters_wna16(ctypes.byref(call), ctypes.byref(plan), pointer, out)
        kind = "Half" if call.x_dtype == HALF else "BFloat16"
        grid = (plan.splits, plan.m_tiles, plan.n_tiles)
        launch = Launch(
            grid, THREADS, plan.shared_bytes, out.raw[:size], plan.splits if plan.clustered else 1, bool(plan.dependent)
        )
        constants = (call.data, call.scales, call.zeros, call.perm, call.bias)
        everything = [*tensors, workspace]
        self.execute(wna16_name(call, plan, kind), launch, everything, constants)
        if plan.splits > 1 and not plan.clustered:
            rows = plan.m_tiles * plan.tokens
            parameters = out.raw[:size] + struct.pack("<qi", rows, plan.tokens)
            second = Launch((-(-call.n // THREADS), 3, 1), THREADS, 0, parameters)
            self.execute(f"wna16_reduce<{kind}>", second, everything, constants)

    def w8a8(
        self, call: native.Product, plan: native.Plan, tensors: Tensors, seed: int = 0, late_copies: bool = True
    ) -> None:
        """As ``vqp_cuda_w8a8_run``."""
        workspace = emulated_w8a8.filled(torch.empty(plan.workspace_bytes, dtype=torch.uint8))
        static = (call.x_scales, call.x_zeros) if call.quantize_x else ()
        constants = (call.w, call.w_scales, call.w_sums, call.bias, *static)
        everything = [*tensors, workspace]
        if plan.channels:
            return self.execute(*w8a8_wide(call, plan), everything, constants)
        lib, out = emulated.library(), ctypes.create_string_buffer(1024)
        pointer = ctypes.c_void_p(workspace.data_ptr() if workspace.numel() else 0)
        size = lib.vqp_parameters_w8a8(ctypes.byref(call), ctypes.byref(plan), pointer, out)
        fused, fp8 = bool(call.quantize_x), call.kind == FP8
        grouped = fp8 and (fused or bool(call.grouped or call.promote))
        grid = (plan.splits, plan.m_tiles, plan.n_tiles)
        launch = Launch(
            grid, THREADS, plan.shared_bytes, out.raw[:size], plan.splits if plan.clustered else 1, bool(plan.dependent)
        )
        name = f"w8a8<{call.kind},{plan.tokens},{int(grouped)},{int(fused)}>"
        self.execute(name, launch, everything, constants)
        if plan.splits > 1 and not plan.clustered:
            parameters = out.raw[:size] + struct.pack("<q", plan.m_tiles * plan.tokens)
            second = Launch((-(-call.n // (2 * THREADS)), 3, 1), THREADS, 0, parameters)
            self.execute(f"w8a8_reduce<{call.kind}>", second, everything, constants)
        return None

    def quantize(
        self, x: torch.Tensor, kind: int, symmetric: bool = True, in_scale: torch.Tensor | None = None,
        in_zero: torch.Tensor | None = None, group: int = 0, seed: int = 0, shared_limit: int = emulated_w8a8.SHARED,
    ) -> Activations:  # fmt: skip
        """As ``vqp_cuda_quantize_run``."""
        blank = quantize.empty_activations(x, kind, symmetric, in_scale, in_zero, group)
        filled = emulated_w8a8.filled
        if in_scale is None:
            result = Activations(filled(blank.q), filled(blank.scales), None if symmetric else filled(blank.zeros))  # type: ignore[arg-type]
        else:
            result = Activations(filled(blank.q), in_scale, in_zero)
        call = quantize.describe(x, result, kind, in_scale, in_zero, group)
        lib, out, shape = emulated.library(), ctypes.create_string_buffer(1024), (ctypes.c_int64 * 3)()
        size = lib.vqp_parameters_quantize(ctypes.byref(call), shared_limit, out, shape)
        half = "Half" if call.x_dtype == HALF else "BFloat16"
        name = f"quantize_groups<{half}>" if group else f"quantize_rows<{half},{kind},{shape[2]}>"
        launch = Launch((shape[0], 1, 1), THREADS, shape[1], out.raw[:size])
        self.execute(name, launch, [x, in_scale, in_zero, result.q, result.scales, result.zeros])
        return result

    def pack(self, codes: torch.Tensor, kind: int, k_padded: int, perm: torch.Tensor | None) -> torch.Tensor:
        """As ``vqp_cuda_pack``."""
        n, k = codes.shape
        bits = 8 if kind == FP8 else kind
        data = torch.full((-(-n // 16) * (k_padded // 64) * 128 * bits,), 0xAA, dtype=torch.uint8)
        lib, out, ctas = emulated.library(), ctypes.create_string_buffer(1024), ctypes.c_int64()
        wide, pointer = ctypes.c_int64, ctypes.c_void_p
        size = lib.vqp_parameters_pack(
            pointer(codes.data_ptr()), wide(n), wide(k), wide(k_padded),
            pointer(None if perm is None else perm.data_ptr()), kind, pointer(data.data_ptr()), out, ctypes.byref(ctas),
        )  # fmt: skip
        self.execute("pack", Launch((ctas.value, 1, 1), THREADS, 0, out.raw[:size]), [codes, perm, data])
        return data

    @contextmanager
    def instead(self) -> Iterator[None]:
        """The functions of :mod:`tests.cuda.emulated` run on this device."""
        with mock.patch.object(emulated, "run", self.linear), mock.patch.object(emulated_w8a8, "run", self.w8a8):
            yield


def wna16_name(call: Linear, plan: Plan, kind: str) -> str:
    if call.zeros and call.zero_dtype == F32:
        return f"wna16<{kind},{call.kind},16,{int(call.kind != FP8)}>"
    if plan.tokens <= 64:
        return f"wna16<{kind},{call.kind},{plan.tokens},0>"
    return f"wna16_wide<{kind},{call.kind},{plan.tokens},{int(plan.tokens > 128)}>"


def w8a8_wide(call: native.Product, plan: native.Plan) -> tuple[str, Launch]:
    out, matrices = ctypes.create_string_buffer(1024), (ctypes.c_int64 * 10)()
    size = emulated.library().vqp_parameters_w8a8_wide(ctypes.byref(call), ctypes.byref(plan), out, matrices)
    maps = {}
    for number in range(2):
        base, rows, columns, stride, box = matrices[5 * number : 5 * number + 5]
        maps[128 * number] = TensorMap(base, rows, columns, stride, box, 128)
    parameters = bytes(256) + out.raw[:size]
    parameters += bytes(-len(parameters) % 128)
    promoted = call.kind == FP8 and bool(call.grouped or call.promote)
    name = f"w8a8_wide<{call.kind},{plan.channels},{int(promoted)}>"
    cluster = 2 if plan.clustered else 1
    grid = (plan.ctas, 1, 1)
    return name, Launch(grid, WIDE_THREADS, plan.shared_bytes, parameters, cluster, bool(plan.dependent), maps)
