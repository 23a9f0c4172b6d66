"""The CUDA kernels on the CPU: builds the emulator library once per source state, and calls it on CPU tensors."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import torch

from vllm_quant_kernels.cuda.layout import bits_of
from vllm_quant_kernels.cuda.library import Linear, Plan, check
from vllm_quant_kernels.cuda.native import describe, describe_experts
from vllm_quant_kernels.cuda.weight import PackedCuda

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("kernels/cuda", "kernels/include", "tests/cuda/emulator")


class Device(ctypes.Structure):
    """``vqp::Device``: what the scheduler knows of a GPU."""

    _fields_ = [(name, ctypes.c_int) for name in ("sms", "smem_per_cta", "smem_per_sm", "clusters", "warpgroups")]


H200 = Device(132, 227 << 10, 228 << 10, 1, 1)
A100 = Device(108, 163 << 10, 164 << 10, 0)
ADA = Device(128, 99 << 10, 100 << 10, 0)
GPUS = {"h200": H200, "a100": A100, "ada": ADA}
# Few SMs, so that small problems are split along K.
SPLITTING = Device(64, 99 << 10, 100 << 10, 0)
CLUSTERED = Device(64, 227 << 10, 228 << 10, 1)
HOPPER = Device(1, 227 << 10, 228 << 10, 1, 1)
ONE_BLOCK = Device(1, 99 << 10, 100 << 10, 0)


class EmulatorFault(AssertionError):
    """The emulated kernel did what would be undefined on hardware."""


@functools.cache
def library() -> ctypes.CDLL:
    """The emulator, compiled from the kernels' own headers. Needs a C++17 compiler, as the CPU kernels do."""
    sources = sorted(
        path for folder in FOLDERS for path in (ROOT / folder).iterdir() if path.suffix in (".h", ".cpp", ".cu")
    )
    state = hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in sources)).hexdigest()[:16]
    target = ROOT / "build" / "cuda-emulator" / f"{state}.so"
    if not target.exists():
        shutil.rmtree(target.parent, ignore_errors=True)
        target.parent.mkdir(parents=True)
        compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
        assert compiler, "the emulator needs a C++17 compiler: apt-get install g++"
        partial = target.with_suffix(f".{os.getpid()}")
        command = [compiler, "-std=c++17", "-O1", "-shared", "-fPIC", *(f"-I{ROOT / folder}" for folder in FOLDERS)]
        units = [str(path) for path in sources if path.suffix == ".cpp"]
        subprocess.run([*command, *units, "-o", str(partial)], check=True)
        partial.rename(target)
    lib = ctypes.CDLL(str(target))
    lib.vqp_emulator_fault.restype = ctypes.c_char_p
    lib.vqp_emulator_value.restype = ctypes.c_double
    lib.vqp_emulator_round.restype = ctypes.c_uint32
    lib.vqp_emulator_round.argtypes = [ctypes.c_double, ctypes.c_int]
    lib.vqp_emulator_reset.argtypes = [ctypes.c_uint64, ctypes.c_int]
    lib.vqp_emulator_allow.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    lib.vqp_emulator_run.argtypes = [ctypes.POINTER(Linear), ctypes.POINTER(Plan), ctypes.c_void_p]
    wide, pointer = ctypes.c_int64, ctypes.c_void_p
    lib.vqp_emulator_pack.argtypes = [pointer, wide, wide, wide, pointer, ctypes.c_int, pointer]
    return lib


def _begin(
    tensors: list[torch.Tensor | None], seed: int, late_copies: bool, constants: tuple[int | None, ...] = ()
) -> None:
    library().vqp_emulator_reset(seed, late_copies)
    for tensor in tensors:
        if tensor is not None and tensor.numel():
            span = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
            at = tensor.data_ptr()
            library().vqp_emulator_allow(at, span * tensor.element_size(), int(at in constants))


def _end() -> None:
    fault = library().vqp_emulator_fault().decode()
    if fault:
        raise EmulatorFault(fault)


def aligned(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """The same tensor at an address that is a multiple of 256, as CUDA's allocator gives."""
    if tensor is None:
        return None
    store = torch.empty(tensor.numel() + 256, dtype=tensor.dtype)
    start = -store.data_ptr() % 256 // tensor.element_size()
    out = store[start : start + tensor.numel()].view(tensor.shape)
    return out.copy_(tensor)


def place(w: PackedCuda) -> PackedCuda:
    """The weight with every tensor aligned."""
    data, scales, zeros, perm = (aligned(t) for t in (w.data, w.scales, w.zeros, w.perm))
    assert data is not None
    assert scales is not None
    return PackedCuda(data, scales, zeros, perm, w.kind, w.group_size, w.n, w.k)


def make_plan(call: Linear, device: Device, tokens: int = 0) -> Plan:
    plan = Plan()
    check(library().vqp_emulator_plan(ctypes.byref(call), ctypes.byref(device), tokens, ctypes.byref(plan)))
    return plan


def run(call: Linear, plan: Plan, tensors: list[torch.Tensor | None], seed: int, late_copies: bool) -> None:
    """Run a planned call whose pointers lie in ``tensors``. Raises EmulatorFault."""
    workspace = torch.full((plan.workspace_bytes // 4,), torch.nan)
    # What a dependent launch may read before the preceding kernel has ended.
    constants = (call.data, call.scales, call.zeros, call.perm, call.bias)
    _begin([*tensors, workspace], seed, late_copies, constants)
    library().vqp_emulator_run(ctypes.byref(call), ctypes.byref(plan), workspace.data_ptr())
    _end()


def linear(
    x: torch.Tensor,
    w: PackedCuda,
    bias: torch.Tensor | None = None,
    device: Device = ONE_BLOCK,
    tokens: int = 0,
    splits: int = 0,
    batch_invariant: bool = False,
    seed: int = 0,
    late_copies: bool = True,
    dependent: bool = True,
) -> torch.Tensor:
    """x (M, K) times the packed weight, by emulating every thread. The output is poisoned with NaN first."""
    w = place(w)
    out = torch.full((x.shape[0], w.n), torch.nan, dtype=x.dtype)
    call = describe(x, out, w, bias, batch_invariant)
    call.dependent = int(dependent)
    plan = make_plan(call, device, tokens)
    if splits:
        force_splits(plan, call, splits, device)
    run(call, plan, [x, out, w.data, w.scales, w.zeros, w.perm, bias], seed, late_copies)
    return out


def experts(
    x: torch.Tensor,
    w: PackedCuda,
    rows: torch.Tensor,
    tile_experts: torch.Tensor,
    padded_rows: torch.Tensor,
    tokens: int,
    top_k: int,
    pairs: int,
    bias: torch.Tensor | None = None,
    row_scales: torch.Tensor | None = None,
    batch_invariant: bool = False,
    device: Device = ONE_BLOCK,
    splits: int = 0,
    seed: int = 0,
) -> torch.Tensor:
    """``vqp::wna16_experts_cuda`` by emulating every thread. The output is poisoned with NaN first."""
    w = place(w)
    out = torch.full((pairs, w.n), torch.nan, dtype=x.dtype)
    call = describe_experts(x, out, w, bias, rows, tile_experts, padded_rows, row_scales, top_k, batch_invariant)
    plan = make_plan(call, device, tokens)
    if splits:
        force_splits(plan, call, splits, device)
    tensors = [x, out, w.data, w.scales, w.zeros, w.perm, bias, rows, tile_experts, padded_rows, row_scales]
    run(call, plan, tensors, seed, late_copies=seed % 2 == 0)
    return out


def force_splits(plan: Plan, call: Linear, splits: int, device: Device) -> None:
    plan.splits, plan.clustered = splits, int(bool(device.clusters) and splits > 1)
    rows = 0 if splits == 1 or plan.clustered else splits * plan.m_tiles * plan.tokens
    plan.workspace_bytes = rows * call.n * 4


def pack(codes: torch.Tensor, kind: int, k_padded: int, perm: torch.Tensor | None) -> torch.Tensor:
    """The device's pack kernel, emulated."""
    n, k = codes.shape
    data = torch.full((-(-n // 16) * (k_padded // 64) * 128 * bits_of(kind),), 0xAA, dtype=torch.uint8)
    _begin([codes, perm, data], 0, True)
    pointer = None if perm is None else perm.data_ptr()
    library().vqp_emulator_pack(codes.data_ptr(), n, k, k_padded, pointer, kind, data.data_ptr())
    _end()
    return data


def fragments(slab: torch.Tensor, kind: int, half: bool, zero: int) -> torch.Tensor:
    """int32 (4 steps, 32 lanes, 4 registers): the A fragments that a warp makes of one slab."""
    out = torch.zeros(4, 32, 4, dtype=torch.int32)
    library().vqp_emulator_fragments(
        ctypes.c_void_p(slab.data_ptr()), kind, int(half), ctypes.c_uint32(zero), ctypes.c_void_p(out.data_ptr())
    )
    return out
