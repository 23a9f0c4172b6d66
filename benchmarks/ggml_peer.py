"""llama.cpp's GEMM as a peer: libggml through ctypes, weights Q4_0 in the CPU's own repacked layout.

The libraries come with the Python package llama-cpp-python (its folder ``llama_cpp/lib``), or from a build of its
source distribution: ``cmake -S vendor/llama.cpp -B build -DBUILD_SHARED_LIBS=ON && cmake --build build -t ggml``.
Only functions of the public headers ggml.h, ggml-backend.h and ggml-cpu.h are called.
"""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path

import torch

Q4_0, F32 = 2, 0  # enum ggml_type
Pointer, Size = ctypes.c_void_p, ctypes.c_size_t


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", Size), ("mem_buffer", Pointer), ("no_alloc", ctypes.c_bool))


def find_library(folder: Path | None) -> Path:
    """The folder of libggml: ``folder``, or that of an installed llama-cpp-python. Raises ImportError without one."""
    if folder is None:
        spec = importlib.util.find_spec("llama_cpp")
        if spec is None or spec.origin is None:
            raise ImportError("llama-cpp-python is not installed: pass a folder with libggml-cpu.so as --ggml")
        folder = Path(spec.origin).parent / "lib"
    if not (folder / "libggml-cpu.so").is_file():
        raise ImportError(f"{folder} has no libggml-cpu.so")
    return folder


class Ggml:
    """The CPU backend of one libggml."""

    def __init__(self, folder: Path) -> None:
        self.base = ctypes.CDLL(str(folder / "libggml-base.so"), mode=ctypes.RTLD_GLOBAL)
        self.cpu = ctypes.CDLL(str(folder / "libggml-cpu.so"))
        self._silent = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, Pointer)(lambda *_: None)
        self.base.ggml_log_set(self._silent, None)
        self.backend = self._call(self.cpu.ggml_backend_cpu_init, Pointer)
        registry = self._call(self.cpu.ggml_backend_cpu_reg, Pointer)
        device = self._call(self.base.ggml_backend_reg_dev_get, Pointer, Pointer(registry), Size(0))
        find = self._call(
            self.base.ggml_backend_reg_get_proc_address, Pointer, Pointer(registry), b"ggml_backend_dev_get_extra_bufts"
        )
        extra = ctypes.CFUNCTYPE(ctypes.POINTER(Pointer), Pointer)(find)(device)
        self.buffer_types = []  # AMX where the CPU has it, then the repacked layouts
        while extra and extra[len(self.buffer_types)]:
            self.buffer_types.append(extra[len(self.buffer_types)])

    @staticmethod
    def _call(function: ctypes._NamedFuncPointer, result: type | None, *arguments: object) -> int:
        function.restype = result
        return function(*arguments)

    def _context(self) -> Pointer:
        self.base.ggml_init.argtypes = [_InitParams]
        return Pointer(self._call(self.base.ggml_init, Pointer, _InitParams(1 << 20, None, True)))

    def _tensor(self, context: Pointer, kind: int, rows: int, columns: int) -> Pointer:
        sizes = (ctypes.c_int64(columns), ctypes.c_int64(rows))
        return Pointer(self._call(self.base.ggml_new_tensor_2d, Pointer, context, ctypes.c_int(kind), *sizes))

    def set_threads(self, count: int) -> None:
        self.cpu.ggml_backend_cpu_set_n_threads(Pointer(self.backend), ctypes.c_int(count))

    def quantize(self, weight: torch.Tensor) -> ctypes.Array[ctypes.c_char]:
        """Float (N, K) to the bytes of Q4_0: groups of 32, 4.5 bits per weight."""
        n, k = weight.shape
        wide = weight.float().contiguous()
        out = ctypes.create_string_buffer(n * k // 32 * 18)
        sizes = (ctypes.c_int64(0), ctypes.c_int64(n), ctypes.c_int64(k))
        source = Pointer(wide.data_ptr())
        self._call(self.base.ggml_quantize_chunk, Size, ctypes.c_int(Q4_0), source, out, *sizes, None)
        return out

    def gemm(self, data: ctypes.Array[ctypes.c_char], n: int, x: torch.Tensor) -> Gemm:
        """A graph that multiplies x (M, K) float32 by one copy of a quantized weight (n, K)."""
        m, k = x.shape
        home, work = self._context(), self._context()
        weight = self._tensor(home, Q4_0, n, k)
        kept = self._call(
            self.base.ggml_backend_alloc_ctx_tensors_from_buft, Pointer, home, Pointer(self.buffer_types[-1])
        )
        if not kept:
            raise ImportError("libggml could not allocate a repacked weight")
        self.base.ggml_backend_tensor_set(weight, data, Size(0), Size(len(data)))
        source = self._tensor(work, F32, m, k)
        out = Pointer(self._call(self.base.ggml_mul_mat, Pointer, work, weight, source))
        graph = Pointer(self._call(self.base.ggml_new_graph, Pointer, work))
        self.base.ggml_build_forward_expand(graph, out)
        self._call(self.base.ggml_backend_alloc_ctx_tensors, Pointer, work, Pointer(self.backend))
        wide = x.float().contiguous()
        self.base.ggml_backend_tensor_set(source, Pointer(wide.data_ptr()), Size(0), Size(wide.nbytes))
        return Gemm(self, graph, out, m, n)


class Gemm:
    """A call computes the GEMM; ``result`` copies it out."""

    def __init__(self, ggml: Ggml, graph: Pointer, out: Pointer, m: int, n: int) -> None:
        self.ggml, self.graph, self.out, self.shape = ggml, graph, out, (m, n)

    def __call__(self) -> None:
        if self.ggml.base.ggml_backend_graph_compute(Pointer(self.ggml.backend), self.graph) != 0:
            raise RuntimeError("libggml could not compute the graph")

    def result(self) -> torch.Tensor:
        y = torch.empty(self.shape)
        self.ggml.base.ggml_backend_tensor_get(self.out, Pointer(y.data_ptr()), Size(0), Size(y.nbytes))
        return y
