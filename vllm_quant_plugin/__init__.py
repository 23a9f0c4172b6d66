"""AWQ, GPTQ, FP8 and INT8 quantization for vLLM, with their own kernels and tools.

Importing this package registers vLLM's own kernels in the kernel registry; it imports neither torch nor vLLM.
"""

from vllm_quant_kernels import registry
from vllm_quant_plugin.adapter.kernels import KERNELS

for _kernel in KERNELS:
    registry.register(_kernel)

__version__ = "0.1.0"
