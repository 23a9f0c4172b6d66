"""Imported by the child that times: registers vLLM's kernels, and sets vLLM up as in a process of one rank."""

from __future__ import annotations

import socket

from vllm_quant_plugin.compat_peers import (
    VllmConfig,
    current_platform,
    init_distributed_environment,
    initialize_model_parallel,
    set_current_vllm_config,
)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# Kernels of vLLM ask for the configuration and the rank when they are chosen and packed: for as long as this process.
_context = set_current_vllm_config(VllmConfig())
_context.__enter__()
init_distributed_environment(
    1, 0, f"tcp://127.0.0.1:{_free_port()}", 0, "nccl" if current_platform.is_cuda() else "gloo"
)
initialize_model_parallel(1, 1)
