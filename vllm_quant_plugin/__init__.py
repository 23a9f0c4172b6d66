"""AWQ, GPTQ, FP8 and INT8 quantization for vLLM, with their own kernels and tools.

Importing this package costs nothing: no torch, no vLLM.
"""

__version__ = "0.1.0"
