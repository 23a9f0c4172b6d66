"""The implementations that benchmarks/gpu_w8a8.py compares: W8A8 GEMM of the same codes.

``build`` returns a call without arguments over fixed inputs: x in BF16, whose quantization is then part of the time,
or its codes. A missing library raises, and the report names it.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch

from vllm_quant_kernels.cuda.w8a8 import activation
from vllm_quant_kernels.cuda.w8a8 import native as w8a8_native
from vllm_quant_kernels.cuda.w8a8.activation import FP8, GROUP, Activations
from vllm_quant_kernels.cuda.w8a8.choice import Backend, choose, fits
from vllm_quant_kernels.cuda.w8a8.quantize import quantize_cuda
from vllm_quant_kernels.cuda.w8a8.weight import WeightW8A8, dequantize_weight

Run = Callable[[], torch.Tensor]


class Peer8(ABC):
    name: str
    kinds: tuple[str, ...] = ("int8", "fp8", "fp8-blocks")

    @abstractmethod
    def build(self, w: WeightW8A8, x: torch.Tensor, a: Activations | None) -> Run:
        """With ``a`` the codes of x are given and not timed."""


class Ours(Peer8):
    """Our operator: by the table, or one implementation; `fast`: FP8 sums stay in the tensor cores, as CUTLASS's do."""

    def __init__(self, backend: Backend | None = None, fast: bool = False) -> None:
        self.backend, self.promote = backend, not fast
        self.name = "vqp" if backend is None else f"vqp-{backend}{'-fast' if fast else ''}"
        if backend in ("fused", "cublaslt"):
            self.kinds = ("int8", "fp8")
        elif backend == "rowwise" or fast:
            self.kinds = ("fp8",)

    def build(self, w: WeightW8A8, x: torch.Tensor, a: Activations | None) -> Run:
        m, kind = x.shape[0], w8a8_native.choice_key(w)
        backend = self.backend or choose(kind, m, w.n, w.k, available=w8a8_native.available(x.device))
        if not fits(backend, kind, m, w.n, w.k, False, True):
            raise ValueError(f"{backend} does not take this shape")
        if backend == "fused" and a is not None and self.backend:
            raise ValueError("only with the quantization included")
        if a is None:
            return lambda: w8a8_native.linear(x, w, promote=self.promote, backend=backend)
        out = torch.empty(m, w.n, dtype=x.dtype, device=x.device)
        return lambda: w8a8_native.multiply(backend, a, w, None, out, self.promote)


class Dense(Peer8):
    """torch's BF16 GEMM of the dequantized weight."""

    name = "torch-bf16"

    def build(self, w: WeightW8A8, x: torch.Tensor, a: Activations | None) -> Run:
        matrix = dequantize_weight(w).to(x.dtype)
        return lambda: torch.nn.functional.linear(x, matrix)


class Cutlass(Peer8):
    """vLLM's quantization and CUTLASS GEMM, as operators of its extension library (``gpu_peers.load``)."""

    name = "vllm-cutlass"
    kinds = ("int8", "fp8")

    def build(self, w: WeightW8A8, x: torch.Tensor, a: Activations | None) -> Run:
        ops, columns, (m, k) = torch.ops._C, w.codes.t(), x.shape
        scales = w.scales.view(-1, 1)

        def quantize() -> tuple[torch.Tensor, torch.Tensor]:
            q = torch.empty(m, k, dtype=w.codes.dtype, device=x.device)
            x_scales = torch.empty(m, 1, dtype=torch.float32, device=x.device)
            if w.kind == activation.INT8:
                ops.dynamic_scaled_int8_quant(q, x, x_scales, None)
            else:
                ops.dynamic_per_token_scaled_fp8_quant(q, x, x_scales, None)
            return q, x_scales

        given = quantize() if a is not None else None

        def run() -> torch.Tensor:
            q, x_scales = given or quantize()
            out = torch.empty(m, w.n, dtype=x.dtype, device=x.device)
            ops.cutlass_scaled_mm(out, q, columns, x_scales, scales, None)
            return out

        return run


class DeepGemm(Peer8):
    """DeepGEMM; its own quantization is not part of the package, so ours provides the codes."""

    name = "deepgemm"
    kinds = ("fp8-blocks",)

    def build(self, w: WeightW8A8, x: torch.Tensor, a: Activations | None) -> Run:
        deep_gemm = importlib.import_module("deep_gemm")
        gemm = getattr(deep_gemm, "fp8_gemm_nt", None) or deep_gemm.gemm_fp8_fp8_bf16_nt
        m, out = x.shape[0], torch.empty(x.shape[0], w.n, dtype=x.dtype, device=x.device)

        def run() -> torch.Tensor:
            codes = a or quantize_cuda(x, FP8, group=GROUP)
            # (M, G) over memory [G][M padded to 4]: what its copies of scales read.
            gemm((codes.q, codes.scales.t()[:m]), (w.codes, w.scales), out)
            return out

        return run


PEERS: list[Peer8] = [
    Ours(), Ours("fused"), Ours("own"), Ours("wgmma"), Ours("cublaslt"), Ours("rowwise"),
    Ours("wgmma", fast=True), Ours("rowwise", fast=True), Dense(), Cutlass(), DeepGemm(),
]  # fmt: skip
