"""Quantization libraries that cannot share vLLM's environment, each in an environment of its own."""
