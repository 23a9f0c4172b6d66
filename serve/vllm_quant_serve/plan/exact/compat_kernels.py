"""Builds weights as if this platform had a kernel for every scheme, so that any checkpoint can be sized anywhere.

Which parameters vLLM creates depends on the checkpoint's format; which kernel runs them, on the machine. Only the
choice of a kernel is replaced here; what vLLM checks of shapes and shards stays.
"""

from __future__ import annotations

import sys
from typing import Any
from unittest.mock import MagicMock

_LINEAR = ("init_fp8_linear_kernel", "init_int8_linear_kernel")
# Asked of Marlin, which vLLM prefers for packed experts on CUDA.
_TRUE = ("check_moe_marlin_supports_config",)
_CHECKS = ("verify_marlin_supported",)
_EXPERTS = ("select_unquantized_moe_backend", "select_fp8_moe_backend",
            "select_int8_moe_backend")  # fmt: skip


def _kernel(*_: Any, **__: Any) -> Any:
    """A kernel, or a class of kernels: it accepts everything and is never run."""
    return MagicMock(name="AnyKernel", __name__="AnyKernel")


def _nothing(*_: Any, **__: Any) -> None:
    """A check that this device has the kernel."""


def _mixed_precision(config: Any) -> Any:
    """As ``_kernel``, for integer weights: no kernel of CUDA takes a shard that cuts a group."""
    inputs, group = config.partition_weight_shape[0], config.group_size
    if group > 0 and inputs % group:
        raise ValueError(f"{inputs} input features of a shard are not a multiple of group {group}")
    return _kernel()


def _yes(*_: Any, **__: Any) -> bool:
    return True


def _packed_experts(config: Any, weight_key: Any, quant_config: Any, *_: Any, **__: Any) -> tuple[Any, None]:
    """As ``_mixed_precision``, for experts."""
    inputs, group = config.intermediate_size_per_partition, quant_config.group_size or -1
    if group > 0 and inputs % group:
        raise ValueError(f"{inputs} features of an expert's shard are not a multiple of group {group}")
    from vllm.model_executor.layers.fused_moe.oracle.int_wna16 import WNA16MoEBackend

    return WNA16MoEBackend.MARLIN, None


def _experts(*_: Any, **__: Any) -> tuple[Any, None]:
    return MagicMock(name="AnyBackend"), None


def accept_any_kernel() -> None:
    """Replace vLLM's choice of kernels in all modules that are loaded; later ones are caught at the next call."""
    import vllm.model_executor.layers.quantization.auto_awq
    import vllm.model_executor.layers.quantization.auto_gptq
    import vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors
    import vllm.model_executor.layers.quantization.fp8  # noqa: F401

    for name, module in list(sys.modules.items()):
        if not name.startswith("vllm.model_executor."):
            continue
        for function in _CHECKS:
            if function in vars(module):
                setattr(module, function, _nothing)
        for function in _LINEAR:
            if function in vars(module):
                setattr(module, function, _kernel)
        if "choose_mp_linear_kernel" in vars(module):
            module.choose_mp_linear_kernel = _mixed_precision  # type: ignore[attr-defined]
        for function in _TRUE:
            if function in vars(module):
                setattr(module, function, _yes)
        if "select_wna16_moe_backend" in vars(module):
            module.select_wna16_moe_backend = _packed_experts  # type: ignore[attr-defined]
        for function in _EXPERTS:
            if function in vars(module):
                setattr(module, function, _experts)
