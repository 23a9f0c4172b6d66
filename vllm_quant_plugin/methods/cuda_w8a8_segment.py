"""Layers on an NVIDIA GPU with 8-bit activations: which weights take them, and the segment.

VQP_CUDA_FP8       w8a8 (default) or w8a16: FP8 weights with 16-bit activations, whatever the checkpoint says.
VQP_CUDA_FP8_FAST  1: FP8 sums stay in the tensor cores, which keep fewer bits of them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import torch

from vllm_quant_kernels.canonical import CanonicalWeight
from vllm_quant_kernels.cuda.w8a8 import native as w8a8_native
from vllm_quant_kernels.cuda.w8a8 import ops  # noqa: F401  (defines the operator)
from vllm_quant_kernels.cuda.w8a8 import weight as w8a8_weight
from vllm_quant_kernels.cuda.w8a8.activation import FP8, GROUP
from vllm_quant_kernels.cuda.w8a8.weight import WeightW8A8, dequantize_weight, make_weight
from vllm_quant_kernels.shared_library import LibraryError
from vllm_quant_plugin.errors import BackendError
from vllm_quant_plugin.methods.kernel import Segment, Tensors, serves_int8, static_int8
from vllm_quant_plugin.scheme import Scheme

FP8_VARIABLE, FAST_VARIABLE = "VQP_CUDA_FP8", "VQP_CUDA_FP8_FAST"
FP8_CORES = (8, 9)  # compute capability
_NONE = torch.empty(0)


def _setting(name: str, allowed: tuple[str, ...]) -> str:
    value = os.environ.get(name, allowed[0])
    if value not in allowed:
        raise BackendError(f"{name}={value}: must be {' or '.join(allowed)}", hint=f"unset {name}")
    return value


@dataclass(frozen=True)
class CudaW8A8Segment(Segment):
    """``vqp::w8a8_linear_cuda``: activations quantized to the kind of the weight, by token, block or a static scale."""

    weight: WeightW8A8
    in_scale: torch.Tensor | None
    in_zero: torch.Tensor | None
    symmetric: bool
    promote: bool
    batch_invariant: bool

    def tensors(self) -> Tensors:
        w = self.weight
        return {
            "": w.codes, "_scales": w.scales, "_sums": w.sums, "_in_scale": self.in_scale, "_in_zero": self.in_zero,
        }  # fmt: skip

    def without_tensors(self) -> Segment:
        bare = replace(self.weight, codes=_NONE, scales=_NONE, sums=None)
        return replace(self, weight=bare, in_scale=None, in_zero=None)

    def apply(self, tensors: Tensors, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return torch.ops.vqp.w8a8_linear_cuda(
            x,
            tensors[""],
            tensors["_scales"],
            tensors["_sums"],
            bias,
            tensors["_in_scale"],
            tensors["_in_zero"],
            self.symmetric,
            self.promote,
            self.batch_invariant,
            self.weight.n,
            self.weight.k,
        )

    def dequantize(self, tensors: Tensors) -> torch.Tensor:
        codes, scales = tensors[""], tensors["_scales"]
        assert codes is not None
        assert scales is not None
        return dequantize_weight(replace(self.weight, codes=codes, scales=scales))

    @property
    def out_features(self) -> int:
        return self.weight.n


def _serves_fp8(weight: CanonicalWeight, scheme: Scheme, device: torch.device) -> bool:
    act = scheme.activation
    if act is None or act.kind != "fp8_e4m3" or weight.kind != "fp8_e4m3" or not w8a8_weight.serves(weight):
        return False
    if _setting(FP8_VARIABLE, ("w8a8", "w8a16")) == "w8a16" or torch.cuda.get_device_capability(device) < FP8_CORES:
        return False
    blocks = weight.scales.shape[1] > 1 or scheme.block is not None
    if not blocks:
        return act.strategy in ("token", "tensor")
    # With a single group of columns the blocks of a weight look like a scale a channel: still a scale a token.
    return act.strategy == "group" and act.group_size == GROUP and act.dynamic


def serves(weight: CanonicalWeight, scheme: Scheme, device: torch.device) -> bool:
    """Whether the layer runs with 8-bit activations; else the weight-only kernels take the weight.

    INT8: what the CPU kernel takes. FP8: where the checkpoint asks for FP8 activations, the GPU has FP8 tensor
    cores (compute capability 8.9) and VQP_CUDA_FP8 does not ask for 16-bit activations.

    Raises:
        BackendError: an environment variable holds something else.
    """
    if serves_int8(scheme, weight):
        return w8a8_weight.serves(weight)
    return _serves_fp8(weight, scheme, device)


def cuda_w8a8_segment(weight: CanonicalWeight, scheme: Scheme, static: dict[str, torch.Tensor]) -> CudaW8A8Segment:
    """The segment of ``weight``, where it is. Raises BackendError where the kernels were switched on but not built."""
    try:
        w8a8_native.library()
    except LibraryError as error:
        raise BackendError(str(error), hint="run `make` with nvcc on PATH, or unset VQP_CUDA_KERNELS") from error
    act = scheme.activation
    assert act is not None
    packed = make_weight(weight)
    symmetric, in_scale, in_zero = act.symmetric or packed.kind == FP8, None, None
    if not act.dynamic:
        in_scale, in_zero = static_int8(static, symmetric)
        in_scale = in_scale.float().to(packed.codes.device)
        in_zero = None if in_zero is None else in_zero.to(packed.codes.device)
    promote = _setting(FAST_VARIABLE, ("0", "1")) == "0"
    invariant = os.environ.get("VLLM_BATCH_INVARIANT", "0") == "1"
    return CudaW8A8Segment(packed, in_scale, in_zero, symmetric, promote, invariant)
