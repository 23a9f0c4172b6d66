"""Planning, launching, supervising and observing vLLM on quantized models."""
