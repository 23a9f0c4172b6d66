"""The vLLM names of its linear kernels, which the adapter chooses from and runs. Imported where a layer is built."""

from __future__ import annotations

from typing import Any

from vllm.model_executor.kernels.linear import (
    _POSSIBLE_INT8_KERNELS,
    MPLinearLayerConfig,
    choose_mp_linear_kernel,
    choose_scaled_mm_linear_kernel,
    init_fp8_linear_kernel,
    init_wfp8_a16_linear_kernel,
)
from vllm.model_executor.kernels.linear.scaled_mm import Int8ScaledMMLinearLayerConfig
from vllm.model_executor.layers.quantization.utils.quant_utils import (
    GroupShape,
    create_fp8_quant_key,
    kFp8DynamicTensorSym,
    kFp8DynamicTokenSym,
    kFp8StaticChannelSym,
    kFp8StaticTensorSym,
)
from vllm.model_executor.parameter import GroupQuantScaleParameter, ModelWeightParameter, PackedvLLMParameter
from vllm.platforms import current_platform
from vllm.scalar_type import ScalarType, scalar_types

RELIED_ON: dict[str, tuple[str, ...]] = {
    "vllm.model_executor.kernels.linear:choose_mp_linear_kernel": ("config", "compute_capability"),
    "vllm.model_executor.kernels.linear:choose_scaled_mm_linear_kernel": (
        "config", "possible_kernels", "quantization",
    ),
    "vllm.model_executor.kernels.linear:init_fp8_linear_kernel": (
        "activation_quant_key", "weight_quant_key", "input_dtype", "out_dtype", "weight_shape",
    ),
    "vllm.model_executor.kernels.linear:init_wfp8_a16_linear_kernel": (
        "weight_quant_key", "activation_quant_key", "weight_shape", "input_dtype", "out_dtype",
    ),
    "vllm.model_executor.kernels.linear:MPLinearKernel.process_weights_after_loading": ("layer",),
    "vllm.model_executor.kernels.linear:MPLinearKernel.apply_weights": ("layer", "x", "bias"),
}  # fmt: skip


def weight_type(bits: int, zeros: bool) -> ScalarType:
    """vLLM's name of unsigned codes of ``bits`` bits, with zero points beside them or in their middle."""
    name = f"uint{bits}" if zeros else f"uint{bits}b{1 << (bits - 1)}"
    return getattr(scalar_types, name)


def no_loader(*_: Any, **__: Any) -> None:
    """The weight loader of parameters that are complete when they are made."""


__all__ = [
    "RELIED_ON",
    "_POSSIBLE_INT8_KERNELS",
    "GroupQuantScaleParameter",
    "GroupShape",
    "Int8ScaledMMLinearLayerConfig",
    "MPLinearLayerConfig",
    "ModelWeightParameter",
    "PackedvLLMParameter",
    "choose_mp_linear_kernel",
    "choose_scaled_mm_linear_kernel",
    "create_fp8_quant_key",
    "current_platform",
    "init_fp8_linear_kernel",
    "init_wfp8_a16_linear_kernel",
    "kFp8DynamicTensorSym",
    "kFp8DynamicTokenSym",
    "kFp8StaticChannelSym",
    "kFp8StaticTensorSym",
    "no_loader",
    "weight_type",
]
