"""The vLLM names that a process of one rank needs before it may ask vLLM for kernels."""

from __future__ import annotations

from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed.parallel_state import init_distributed_environment, initialize_model_parallel
from vllm.platforms import current_platform

__all__ = [
    "VllmConfig",
    "current_platform",
    "init_distributed_environment",
    "initialize_model_parallel",
    "set_current_vllm_config",
]
