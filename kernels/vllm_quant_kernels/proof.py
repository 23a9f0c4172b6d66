"""Which of this project's CUDA kernels may run: those proven on this GPU, or all by VQP_CUDA_KERNELS. No torch.

VQP_CUDA_KERNELS=1    all
VQP_CUDA_KERNELS=0    none
unset                 those that ``proven`` names for the GPU
"""

from __future__ import annotations

from vllm_quant_kernels import env
from vllm_quant_kernels.kernel import Device


def proven(device: Device) -> frozenset[str]:
    """Names of the kernels (``Kernel.name``) that this machine's GPU has shown to be right.

    Nothing records this yet, so it is none: vLLM's own kernels serve.
    """
    return frozenset()


def refused(name: str, device: Device) -> str | None:
    """Why the CUDA kernel ``name`` may not run on ``device``; None where it may.

    Raises:
        SettingError: VQP_CUDA_KERNELS is neither 0 nor 1.
    """
    forced = env.choice("VQP_CUDA_KERNELS")
    if forced == "1" or (not forced and name in proven(device)):
        return None
    return "VQP_CUDA_KERNELS is 0" if forced else "not proven on this GPU (VQP_CUDA_KERNELS=1 runs it all the same)"
