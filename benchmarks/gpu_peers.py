"""The implementations that benchmarks/gpu_linear.py compares, each built from a canonical weight.

vLLM's are operators of its extension library (``load``), which needs no vLLM package. A peer's library is imported when
it is built; a missing one raises, and the report names it.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch

from vllm_quant_kernels.canonical import CanonicalWeight

Runner = Callable[[torch.Tensor], torch.Tensor]


class Peer(ABC):
    """One implementation. ``tolerance``: relative error (Frobenius) against fp64 on the same weight."""

    name: str
    bits: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8)
    zeros = True
    tolerance = 1e-2

    def check(self, bits: int, zeros: bool) -> None:
        """Raise ValueError where the implementation has no kernel for the case."""
        if bits not in self.bits:
            raise ValueError(f"no {bits}-bit kernel")
        if zeros and not self.zeros:
            raise ValueError("no zero points")

    @abstractmethod
    def build(self, weight: CanonicalWeight, dtype: torch.dtype) -> Runner:
        """A function x (M, K) to (M, N) over a prepared copy of ``weight``."""


class Ours(Peer):
    name = "vqp"

    def build(self, weight: CanonicalWeight, dtype: torch.dtype) -> Runner:
        from vllm_quant_kernels.cuda.ops import linear_cuda
        from vllm_quant_kernels.cuda.pack import pack_cuda

        packed = pack_cuda(weight)
        return lambda x: linear_cuda(x, packed)


class OursAlone(Peer):
    """Ours without PDL: each call starts after the preceding kernel has ended."""

    name = "vqp-no-pdl"

    def build(self, weight: CanonicalWeight, dtype: torch.dtype) -> Runner:
        from vllm_quant_kernels.cuda import native as cuda_native
        from vllm_quant_kernels.cuda.pack import pack_cuda

        packed = pack_cuda(weight)

        def run(x: torch.Tensor) -> torch.Tensor:
            out = torch.empty(x.shape[0], packed.n, dtype=x.dtype, device=x.device)
            call = cuda_native.describe(x, out, packed, None, False)
            call.dependent = 0
            cuda_native.run(call, cuda_native.plan(call), x.device)
            return out

        return run


class Dense(Peer):
    """torch's dense GEMM of the dequantized weight in 16 bits: the rate that quantization has to beat."""

    name = "torch-dense"

    def build(self, weight: CanonicalWeight, dtype: torch.dtype) -> Runner:
        matrix = weight.dequantize(dtype)
        return lambda x: torch.nn.functional.linear(x, matrix)


def _gptq_words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes (N, K) to GPTQ's int32 (K * bits / 32, N): adjacent k from the low bits up."""
    per_word = 32 // bits
    fields = codes.T.reshape(-1, per_word, codes.shape[0]).int()
    shifts = torch.arange(per_word, device=codes.device, dtype=torch.int32)[None, :, None] * bits
    return (fields << shifts).sum(1, dtype=torch.int32).contiguous()


# Identifiers of vLLM's scalar types uint4b8 and uint8b128: csrc/core/scalar_type.hpp packs the type's fields.
SCALAR_TYPES = {4: 1125899907892224, 8: 1125899923621888}
# The order in which Marlin reads the scales of 64 output channels, in groups; of 32, per channel.
_IN_GROUPS = [i + 8 * j for i in range(8) for j in range(8)]
_PER_CHANNEL = [2 * i + j for i in range(4) for j in (0, 1, 8, 9, 16, 17, 24, 25)]


def load(library: str | None) -> None:
    """Make vLLM's operators known as ``torch.ops._C``: from the file ``library``, else from an installed vLLM."""
    if library is not None:
        torch.ops.load_library(library)
        return
    with contextlib.suppress(ImportError):
        import vllm._custom_ops  # noqa: F401


class Marlin(Peer):
    """vLLM's Marlin. Its kernels may be compiled from PTX at the first call."""

    name = "marlin"
    bits = (4, 8)
    zeros = False

    def build(self, weight: CanonicalWeight, dtype: torch.dtype) -> Runner:
        ops, (n, k) = torch.ops._C, weight.codes.shape
        data = ops.gptq_marlin_repack(_gptq_words(weight.codes, weight.bits), k, n, weight.bits, False)
        order = _IN_GROUPS if weight.group_size < k else _PER_CHANNEL
        scales = weight.scales.to(dtype).T.contiguous().reshape(-1, len(order))[:, order].reshape(-1, n).contiguous()
        sms = torch.cuda.get_device_properties(0).multi_processor_count
        locks, kind = torch.zeros(sms, dtype=torch.int32, device="cuda"), SCALAR_TYPES[weight.bits]
        return lambda x: ops.marlin_gemm(
            x, None, data, None, scales, None, None, None, locks, kind, x.shape[0], n, k, False, True, False
        )


class Machete(Peer):
    """vLLM's Machete (Hopper only)."""

    name = "machete"
    bits = (4, 8)
    zeros = False

    def build(self, weight: CanonicalWeight, dtype: torch.dtype) -> Runner:
        ops, kind, group = torch.ops._C, SCALAR_TYPES[weight.bits], weight.group_size
        words = _gptq_words(weight.codes, weight.bits).t().contiguous().t()
        data = ops.machete_prepack_B(words, dtype, kind, dtype)
        scales = weight.scales.to(dtype).T.contiguous()
        return lambda x: ops.machete_mm(x, data, kind, dtype, scales, None, group, None, None, None)


class Humming(Peer):
    """Humming's layer with its default configurations. It quantizes the weight, so the bound is that of rounding."""

    name = "humming"
    zeros = False
    tolerance = 0.7

    def build(self, weight: CanonicalWeight, dtype: torch.dtype) -> Runner:
        from humming.layer import HummingLayer

        n, k = weight.codes.shape
        config = {"dtype": f"int{weight.bits}", "group_size": weight.group_size}
        layer = HummingLayer(shape_n=n, shape_k=k, weight_config=config, torch_dtype=dtype).cuda()
        layer.load_from_unquantized(weight.dequantize(dtype))
        layer.transform()
        layer.prepare_default_kernel_configs()
        return layer


class GemLite(Peer):
    """GemLite's Triton kernels."""

    name = "gemlite"
    bits = (2, 4, 8)

    def build(self, weight: CanonicalWeight, dtype: torch.dtype) -> Runner:
        from gemlite.core import DType, GemLiteLinear

        n, k = weight.codes.shape
        kind = DType.FP16 if dtype == torch.float16 else DType.BF16
        layer = GemLiteLinear(
            weight.bits,
            group_size=weight.group_size,
            in_features=k,
            out_features=n,
            input_dtype=kind,
            output_dtype=kind,
        )
        zeros = torch.full_like(weight.scales, 1 << (weight.bits - 1)) if weight.zeros is None else weight.zeros
        layer.pack(weight.codes, weight.scales.to(dtype), zeros.to(dtype), None)
        return layer


PEERS: list[Peer] = [Ours(), OursAlone(), Dense(), Marlin(), Machete(), Humming(), GemLite()]
