"""Which of this project's CUDA kernels may run: those proven on this GPU, or all by VQP_CUDA_KERNELS. No torch.

VQP_CUDA_KERNELS=1    all
VQP_CUDA_KERNELS=0    none
unset                 those that the verdict of ``vllm-quant verify-kernels`` names for the GPU
"""

from __future__ import annotations

from vllm_quant_kernels import env
from vllm_quant_kernels.cuda.verify import proven
from vllm_quant_kernels.kernel import Device
from vllm_quant_kernels.scheme import WeightScheme


def refused(name: str, scheme: WeightScheme, device: Device) -> str | None:
    """Why the CUDA kernel ``name`` may not run a weight of ``scheme``, which it reads; None where it may.

    Raises:
        SettingError: VQP_CUDA_KERNELS is neither 0 nor 1.
    """
    forced = env.choice("VQP_CUDA_KERNELS")
    if forced:
        return None if forced == "1" else "VQP_CUDA_KERNELS is 0"
    return proven.why_not(name, scheme, device)
