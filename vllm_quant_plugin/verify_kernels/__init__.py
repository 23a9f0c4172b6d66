"""``vllm-quant verify-kernels``: proof on this machine that the CUDA kernels are right, and where they are faster."""
