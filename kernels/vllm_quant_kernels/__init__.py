"""Quantized linear kernels for PyTorch: packing, torch.library ops, fp64 reference.

Knows nothing of vLLM or of checkpoint formats. Every format meets here as a
``CanonicalWeight``; every kernel starts from one.
"""
