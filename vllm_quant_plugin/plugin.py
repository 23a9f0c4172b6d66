"""``register``: the ``vllm.general_plugins`` entry point.

vLLM calls it in every process, several times, before it parses its flags. It is passive
(registers names, touches no device) and idempotent: a further call adds the methods of formats
that were registered since.
"""

from __future__ import annotations

import functools

from vllm_quant_plugin.engine_wait import sleep_while_idle
from vllm_quant_plugin.import_hook import after_import


def register() -> None:
    """Register with vLLM the methods of every format (``vqp_awq``, ``vqp_gptq``, ...) and their aliases."""
    from vllm_quant_plugin import compat
    from vllm_quant_plugin.formats.registry import vllm_methods

    _prepare()
    for method in vllm_methods():
        if method not in compat.QUANTIZATION_METHODS:
            from vllm_quant_plugin.methods.config import config_class

            config = config_class(method)
            for name in config.names:
                compat.register_quantization_config(name)(config)


@functools.cache
def _prepare() -> None:
    """What is done once per process."""
    from vllm_quant_plugin import compat

    compat.warn_if_untested()
    after_import("vllm.model_executor.kernels.linear", _register_kernel)
    if compat.current_platform.is_cpu():
        sleep_while_idle()


def _register_kernel() -> None:
    from vllm_quant_plugin.methods.mp_kernel import register_kernel

    register_kernel()
