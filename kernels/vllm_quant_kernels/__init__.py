"""Quantized linear kernels for PyTorch: packing, torch.library ops, fp64 reference.

Knows nothing of vLLM or of checkpoint formats. Every format meets here as a
``CanonicalWeight``; every kernel starts from one.

    from vllm_quant_kernels.canonical import CanonicalWeight
    from vllm_quant_kernels.cpu.pack import pack, pack_int8
    from vllm_quant_kernels.cpu.ops import linear, linear_int8
"""
