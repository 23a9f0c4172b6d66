"""Kernels side by side with their peers, in one run: ``vllm-quant bench`` and ``benchmarks/cpu_linear.py``."""
