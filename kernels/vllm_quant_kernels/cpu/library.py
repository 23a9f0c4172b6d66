"""Finds, checks and loads the native library ``libvqp_cpu.so``."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

from vllm_quant_kernels import env, shared_library
from vllm_quant_kernels.env import LEVELS
from vllm_quant_kernels.shared_library import LibraryError

NAME = "libvqp_cpu.so"
ABI_VERSION = 4
_REFUSED = 6  # VQP_ESYSTEM


def library_path() -> Path | None:
    """The library beside the package or in site-packages (editable install); None when there is none."""
    return shared_library.library_path(NAME, "VQP_CPU_LIBRARY")


def _declare(lib: ctypes.CDLL) -> None:
    """Argument types, as in kernels/include/vqp_cpu.h: p pointer, i int, l int64."""
    types = {"p": ctypes.c_void_p, "i": ctypes.c_int, "l": ctypes.c_int64}
    for name, signature in {
        "vqp_wna16_linear": "piplplpipiplpiilllli",
        "vqp_w4a8_linear": "piplplpipiplpiilllli",
        "vqp_w8a8_linear": "piplplpppppilli",
        "vqp_pack": "plliplpi",
        "vqp_pack_words": "plliillllplpi",
        "vqp_unpack_words": "plliillllpi",
        "vqp_read": "pli",
    }.items():
        getattr(lib, name).argtypes = [types[letter] for letter in signature]
    lib.vqp_read.restype = ctypes.c_uint64


@functools.cache
def load() -> ctypes.CDLL:
    """The loaded library, at the level that VQP_CPU_ISA allows.

    Raises:
        LibraryError: it is absent, cannot be loaded, has another ABI, or VQP_CPU_ISA names no level that can be
            used here.
    """
    build = "run `make`, or `pip install .` with a C++17 compiler"
    lib = shared_library.open_library(library_path(), NAME, "vqp_cpu_abi_version", ABI_VERSION, build)
    _declare(lib)
    int8_activations()
    wanted = env.choice("VQP_CPU_ISA")
    if wanted:
        set_level(lib, wanted)
    return lib


@functools.cache
def int8_activations() -> bool:
    """Whether VQP_CPU_W4A8 asks for INT8 activations.

    Looked up by the operators and not by who calls them: a graph that vLLM compiled and cached then holds for
    either value.

    Raises:
        SettingError: it is neither 0 nor 1.
    """
    return env.switch("VQP_CPU_W4A8")


def set_level(lib: ctypes.CDLL, name: str) -> None:
    """Use no instruction beyond level ``name``. Raises LibraryError for one that this CPU or its system lacks."""
    error = lib.vqp_cpu_set_level(LEVELS.index(name))
    if error == _REFUSED:
        refused = "the operating system refuses this process the tile registers (arch_prctl)"
        raise LibraryError(f"VQP_CPU_ISA={name}: {refused}")
    if error != 0:
        raise LibraryError(f"VQP_CPU_ISA={name}: this CPU has no more than {LEVELS[lib.vqp_cpu_max_level()]}")


def level() -> str | None:
    """The level in use, or None without a native library."""
    if not available():
        return None
    return LEVELS[load().vqp_cpu_level()]


@functools.cache
def available() -> bool:
    """Whether the ops run native code here. A library that exists but cannot be used still raises."""
    if library_path() is None:
        return False
    load()
    return True
