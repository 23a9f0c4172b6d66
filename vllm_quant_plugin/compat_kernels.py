"""The vLLM names of its linear-kernel registry. Imports nothing that imports model layers."""

from __future__ import annotations

from vllm.model_executor.kernels.linear import (
    _POSSIBLE_KERNELS,
    MPLinearKernel,
    MPLinearLayerConfig,
    register_linear_kernel,
)
from vllm.platforms import PlatformEnum

__all__ = [
    "_POSSIBLE_KERNELS",
    "MPLinearKernel",
    "MPLinearLayerConfig",
    "PlatformEnum",
    "register_linear_kernel",
]
