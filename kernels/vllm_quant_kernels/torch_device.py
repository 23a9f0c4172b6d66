"""A torch device as the registry describes it."""

from __future__ import annotations

import torch

from vllm_quant_kernels.kernel import Device


def device_of(device: torch.device) -> Device:
    """The device with its compute capability, where it is a GPU whose capability this process can ask for."""
    if device.type != "cuda":
        return Device(device.type)
    try:
        return Device("cuda", torch.cuda.get_device_capability(device))
    except (AssertionError, RuntimeError):  # a build of torch without CUDA, or no driver
        return Device("cuda")


def dtype_name(dtype: torch.dtype) -> str:
    """``bfloat16`` for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")
