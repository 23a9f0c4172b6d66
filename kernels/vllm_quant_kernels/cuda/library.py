"""Finds, checks and loads ``libvqp_cuda.so``, and mirrors the structures of kernels/include/vqp_cuda.h."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

from vllm_quant_kernels import env, shared_library
from vllm_quant_kernels.shared_library import raise_error

NAME = "libvqp_cuda.so"
ABI_VERSION = 4
NO_DTYPE = 4
RUNTIME_ERROR = 1000
ERRORS = {
    1: "the sizes do not make the packed layout, or exceed the grid",
    2: "no kernel reads these dtypes",
    3: "a tensor is not 16-byte aligned",
    4: "the workspace is too small",
    5: "the device is below compute capability 8.0 or has too little shared memory",
}


class Linear(ctypes.Structure):
    """``vqp_cuda_linear``."""

    _fields_ = (
        [(name, ctypes.c_void_p) for name in ("x", "y", "data", "scales", "zeros", "perm", "bias")]
        + [(name, ctypes.c_void_p) for name in ("rows", "experts", "padded_rows", "row_scales")]
        + [(name, ctypes.c_int64) for name in ("m", "n", "k", "k_padded", "x_stride", "groups", "sorted_rows")]
        + [(name, ctypes.c_int32) for name in ("group_size", "kind", "x_dtype", "scale_dtype", "zero_dtype")]
        + [(name, ctypes.c_int32) for name in ("bias_dtype", "top_k", "num_experts", "batch_invariant", "dependent")]
    )


class Plan(ctypes.Structure):
    """``vqp_cuda_plan``."""

    _fields_ = (
        [
            (name, ctypes.c_int32)
            for name in ("tokens", "m_tiles", "n_tiles", "splits", "stages", "stage_bytes", "shared_bytes", "clustered")
        ]
        + [("dependent", ctypes.c_int32)]
        + [("workspace_bytes", ctypes.c_int64)]
    )

    def as_dict(self) -> dict[str, int]:
        return {name: getattr(self, name) for name, _ in self._fields_}  # type: ignore[misc]


def library_path() -> Path | None:
    """The library beside the package or in site-packages (editable install); None when there is none."""
    return shared_library.library_path(NAME, "VQP_CUDA_LIBRARY")


@functools.cache
def load() -> ctypes.CDLL:
    """The loaded library. It needs no GPU and no CUDA installation to load.

    Raises:
        LibraryError: it is absent, cannot be loaded, or has another ABI.
    """
    build = "run `make` with nvcc on PATH"
    lib = shared_library.open_library(library_path(), NAME, "vqp_cuda_abi_version", ABI_VERSION, build)
    pointer, wide = ctypes.c_void_p, ctypes.c_int64
    lib.vqp_cuda_linear_plan.argtypes = [ctypes.POINTER(Linear), ctypes.c_int, ctypes.POINTER(Plan)]
    lib.vqp_cuda_linear_run.argtypes = [ctypes.POINTER(Linear), ctypes.POINTER(Plan), pointer, wide, pointer]
    lib.vqp_cuda_pack.argtypes = [pointer, wide, wide, wide, pointer, ctypes.c_int, pointer, pointer]
    return lib


def available() -> bool:
    """Whether the library was built here."""
    return library_path() is not None


@functools.cache
def dependent_launch() -> bool:
    """Whether kernels may start before the one ahead has ended: VQP_CUDA_PDL, read once. Raises SettingError."""
    return env.switch("VQP_CUDA_PDL")


def check(code: int) -> None:
    """Raise for a code that is not 0: ValueError for a refused call, RuntimeError for a CUDA error."""
    if code >= RUNTIME_ERROR:
        raise RuntimeError(f"the CUDA runtime answers cudaError_t {code - RUNTIME_ERROR}")
    if code:
        raise_error(code, ERRORS)
