"""``register``: the ``vllm.general_plugins`` entry point.

vLLM calls it in every process, several times, before it parses its flags. It is passive
(registers names, touches no device) and idempotent.
"""

from __future__ import annotations

from vllm_quant_plugin.engine_wait import sleep_while_idle
from vllm_quant_plugin.import_hook import after_import


def register() -> None:
    """Register ``vqp_awq``, ``vqp_gptq``, ``vqp_fp8``, ``vqp_int8`` and ``int8`` with vLLM."""
    from vllm_quant_plugin import compat

    if "vqp_awq" in compat.QUANTIZATION_METHODS:
        return
    compat.warn_if_untested()
    from vllm_quant_plugin.methods.awq import VqpAwqConfig
    from vllm_quant_plugin.methods.fp8 import VqpFp8Config
    from vllm_quant_plugin.methods.gptq import VqpGptqConfig
    from vllm_quant_plugin.methods.int8 import VqpInt8Config

    for config in (VqpAwqConfig, VqpGptqConfig, VqpFp8Config, VqpInt8Config):
        for name in config.names:
            compat.register_quantization_config(name)(config)
    after_import("vllm.model_executor.kernels.linear", _register_kernel)
    if compat.current_platform.is_cpu():
        sleep_while_idle()


def _register_kernel() -> None:
    from vllm_quant_plugin.methods.mp_kernel import register_kernel

    register_kernel()
