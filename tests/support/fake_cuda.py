"""vLLM as on an NVIDIA GPU, on a CPU: its platform answers as one does, and its kernels compute exactly.

vLLM's own functions choose among its own kernel classes. In place of their GPU code, integers are read from the
parameters that the class gets, in the layout that the in-tree classes document, and multiplied in float64.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from vllm.model_executor.kernels import linear as kernels
from vllm.model_executor.kernels.linear.mixed_precision import humming
from vllm.model_executor.parameter import permute_param_layout_
from vllm.platforms import PlatformEnum, current_platform
from vllm.platforms.interface import DeviceCapability

from vllm_quant_kernels.unpack import unpack_dense
from vllm_quant_plugin.adapter import names

INTEGER_KERNELS = (kernels.MarlinLinearKernel, kernels.MacheteLinearKernel, kernels.HummingLinearKernel)


def fake_cuda(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], with_humming: bool = True) -> None:
    """``current_platform`` is an NVIDIA GPU of ``capability``; no tensor moves anywhere."""
    number = capability[0] * 10 + capability[1]

    def least(self: Any, wanted: Any, device_id: int = 0) -> bool:
        return number >= (wanted if isinstance(wanted, int) else wanted[0] * 10 + wanted[1])

    def same(self: Any, wanted: Any, device_id: int = 0) -> bool:
        return number == (wanted if isinstance(wanted, int) else wanted[0] * 10 + wanted[1])

    answers = {
        "_enum": PlatformEnum.CUDA,
        "is_cuda": lambda self: True,
        "is_cuda_alike": lambda self: True,
        "is_cpu": lambda self: False,
        "supports_fp8": lambda self: number >= 89,
        "get_device_capability": lambda self, device_id=0: DeviceCapability(*capability),
        "has_device_capability": least,
        "is_device_capability": same,
        "is_device_capability_family": lambda self, wanted, device_id=0: number // 10 == wanted // 10,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(type(current_platform), name, answer, raising=False)
    monkeypatch.setattr(humming, "has_humming", lambda: with_humming)
    monkeypatch.setattr("vllm.model_executor.kernels.linear.scaled_mm.humming.has_humming", lambda: with_humming)
    monkeypatch.setattr(names, "has_humming", lambda: with_humming)
    for name in ("get_tensor_model_parallel_rank", "get_tensor_model_parallel_world_size"):
        monkeypatch.setattr(f"vllm.model_executor.parameter.{name}", lambda answer=int("size" in name): answer)


def exact_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Marlin, Machete and Humming compute in float64 what their parameters say."""
    for kernel in INTEGER_KERNELS:
        monkeypatch.setattr(kernel, "process_weights_after_loading", _read)
        monkeypatch.setattr(kernel, "apply_weights", _multiply)


def captured(kernel: Any, layer: Any) -> dict[str, torch.Tensor]:
    """The parameters of an integer kernel as the class will read them: inputs first, packed along the inputs."""
    weight, scales = getattr(layer, kernel.w_q_name), getattr(layer, kernel.w_s_name)
    permute_param_layout_(weight, input_dim=0, output_dim=1, packed_dim=0)
    permute_param_layout_(scales, input_dim=0, output_dim=1)
    found = {"weight": weight.data.contiguous(), "scales": scales.data.contiguous()}
    if kernel.config.zero_points:
        zeros = getattr(layer, kernel.w_zp_name)
        permute_param_layout_(zeros, input_dim=0, output_dim=1, packed_dim=1)
        found["zeros"] = zeros.data.contiguous()
    return found


def _read(self: Any, layer: torch.nn.Module) -> None:
    c = self.config
    k, n = c.partition_weight_shape
    bits, group = c.weight_type.size_bits, k if c.group_size == -1 else c.group_size
    found = captured(self, layer)
    codes = unpack_dense(found["weight"].t().contiguous(), bits, k).double()
    scales = found["scales"].t().double().repeat_interleave(group, dim=1)
    assert scales.shape == codes.shape == (n, k)
    if c.zero_points:
        zeros = unpack_dense(found["zeros"], bits, n).t().double().repeat_interleave(group, dim=1)
    else:
        zeros = torch.tensor(float(c.weight_type.bias), dtype=torch.float64)
    self.seen = (codes - zeros) * scales


def _multiply(self: Any, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    assert x.shape[1] == self.seen.shape[1]
    assert bias is None
    return (x.double() @ self.seen.t()).to(x.dtype)
