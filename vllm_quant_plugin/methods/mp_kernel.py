"""This plugin's weight-only kernel in vLLM's own registry, for methods that are not ours.

compressed-tensors pack-quantized layers with 2 to 8 bits come here, on a CPU and, with the CUDA kernels
switched on (``VQP_CUDA_KERNELS=1``), on an NVIDIA GPU, when no in-tree kernel takes them
(``VQP_LINEAR_KERNELS=last``, the default), before the in-tree ones (``first``), or never (``off``). The
layer's parameters arrive in one of vLLM's layouts; ``input_dim``, ``output_dim`` and ``packed_dim`` on each
say which.
"""

from __future__ import annotations

from typing import Any

import torch

from vllm_quant_kernels import env
from vllm_quant_kernels.canonical import CanonicalWeight
from vllm_quant_kernels.scheme import Int
from vllm_quant_plugin import compat_kernels as kernels
from vllm_quant_plugin.errors import BackendError, UsageError
from vllm_quant_plugin.formats import Host
from vllm_quant_plugin.formats.bits import unpack_dense
from vllm_quant_plugin.formats.compressed_tensors import PACK_QUANTIZED
from vllm_quant_plugin.methods.kernel import PackedLinear
from vllm_quant_plugin.schemes import StoredScheme


class VqpLinearKernel(kernels.MPLinearKernel):
    """Integers of 2 to 8 bits, with and without zero points, through ``vqp::wna16_linear`` or its CUDA form."""

    @classmethod
    def get_min_capability(cls) -> int:
        return -1

    @classmethod
    def can_implement(cls, c: Any) -> tuple[bool, str | None]:
        kind = c.weight_type
        if kind.is_floating_point() or kind.is_signed() or not 2 <= kind.size_bits <= 8:
            return False, f"weight type {kind} is not an unsigned integer of 2 to 8 bits"
        if c.act_type not in (torch.bfloat16, torch.float16, torch.float32):
            return False, f"activations of {c.act_type} are not 16 or 32 bits wide"
        in_features = c.partition_weight_shape[0]
        if c.group_size > 0 and in_features % c.group_size:
            return False, f"group_size {c.group_size} does not divide this rank's in_features {in_features}"
        return True, None

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        bits = self.config.weight_type.size_bits
        k, n = self.config.partition_weight_shape
        packed, scales = getattr(layer, self.w_q_name), getattr(layer, self.w_s_name)
        weight = CanonicalWeight(
            codes=unpack_dense(last_dim(packed, packed.input_dim), bits, k),
            scales=last_dim(scales, 1 - scales.output_dim),
            bits=bits,
            group_size=self.config.group_size if self.config.group_size > 0 else k,
            zeros=self._zeros(layer, bits, n),
        )
        scheme = StoredScheme(Int(bits), self.config.group_size, storage=PACK_QUANTIZED)
        for name in (self.w_q_name, self.w_s_name, self.w_zp_name):
            if name is not None and hasattr(layer, name):
                delattr(layer, name)
        self.packed = PackedLinear.build([weight], scheme, {}, scales.device, self.config.act_type)
        self.packed.register(layer, self.w_q_name)

    def _zeros(self, layer: torch.nn.Module, bits: int, n: int) -> torch.Tensor | None:
        if not self.config.zero_points or self.w_zp_name is None:
            # A biased type (uint4b8) has its zero in the middle of the codes, the canonical default.
            return None
        zeros = getattr(layer, self.w_zp_name)
        return unpack_dense(last_dim(zeros, zeros.output_dim), bits, n).t().contiguous()

    def apply_weights(self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return self.packed(layer, x, bias)


def last_dim(tensor: torch.Tensor, dim: int) -> torch.Tensor:
    """The 2-D ``tensor``, transposed if need be so that ``dim`` is the last, contiguous."""
    return (tensor.data if dim == 1 else tensor.data.t()).contiguous()


def kernel_order() -> str:
    """Where our kernel goes in vLLM's list: ``last``, ``first`` or ``off``. Raises UsageError for another value."""
    try:
        return env.choice("VQP_LINEAR_KERNELS")
    except env.SettingError as error:
        raise UsageError(str(error), f"unset {error.name}") from error


class VqpCudaLinearKernel(VqpLinearKernel):
    """The same on an NVIDIA GPU: 16-bit activations, compute capability 8.0 and up."""

    @classmethod
    def get_min_capability(cls) -> int:
        return 80

    @classmethod
    def can_implement(cls, c: Any) -> tuple[bool, str | None]:
        if c.act_type not in (torch.bfloat16, torch.float16):
            return False, f"activations of {c.act_type} are not 16 bits wide"
        return super().can_implement(c)


def register_kernel() -> None:
    """Add the kernels to vLLM's registry, once.

    Raises:
        UsageError: VQP_LINEAR_KERNELS is none of its values.
        BackendError: VQP_CUDA_KERNELS is neither 0 nor 1.
    """
    order = kernel_order()
    if order == "off":
        return
    # vLLM's own kernel accepts 4-bit layers on CPUs without AVX-512 as well, and then lacks its operator.
    _register(VqpLinearKernel, kernels.PlatformEnum.CPU, "first" if Host.local("cpu").lacks_avx512 else order)
    try:
        on_cuda = env.switch("VQP_CUDA_KERNELS")
    except env.SettingError as error:
        raise BackendError(str(error), hint="unset VQP_CUDA_KERNELS") from error
    if on_cuda:
        _register(VqpCudaLinearKernel, kernels.PlatformEnum.CUDA, order)


def _register(kernel: type[VqpLinearKernel], platform: Any, order: str) -> None:
    if kernel in kernels._POSSIBLE_KERNELS.get(platform, []):
        return
    kernels.register_linear_kernel(kernel, platform, "mp")
    if order == "first":
        present = kernels._POSSIBLE_KERNELS[platform]
        present.remove(kernel)
        present.insert(0, kernel)
