"""What vLLM's own compressed-tensors methods serve, by kind of module and device. No torch.

Source: vLLM 0.32 and 0.33, layers/quantization/compressed_tensors: ``_get_scheme_from_parts``, ``get_moe_method``,
``CompressedTensorsEmbeddingWNA16Int``; kernels/linear (``CPUWNA16LinearKernel``), layers/fused_moe/oracle.
"""

from __future__ import annotations

from vllm_quant_kernels.scheme import PER_CHANNEL, PER_TENSOR
from vllm_quant_plugin.formats.eight_bit import fp8_in_tree
from vllm_quant_plugin.formats.host import Host
from vllm_quant_plugin.schemes import StoredScheme

# CPUWNA16LinearKernel works on blocks of so many features on both sides.
_CPU_STEP = 32


def reaches_the_kernels(scheme: StoredScheme) -> bool:
    """Whether vLLM's method for packed weights takes the scheme, so that its list of kernels is asked."""
    return scheme.group_size != PER_TENSOR and not scheme.act_order


def linear_in_tree(scheme: StoredScheme, host: Host, n: int = 0, k: int = 0) -> str | None:
    """Why no method of vLLM serves linear layers of the scheme, None when one does."""
    layout = scheme.storage["layout"]
    if scheme.act_order:
        return "compressed-tensors act-order (actorder: group)"
    if layout == "float-quantized":
        return fp8_in_tree(scheme, host)
    if layout == "int-quantized":
        return _int8(scheme, host)
    if layout != "pack-quantized":
        return f"{scheme.describe()} on a CPU" if host.device == "cpu" else None
    if scheme.group_size == PER_TENSOR:
        return "pack-quantized with one scale per tensor"
    return _packed_on_cpu(scheme, host, n, k) if host.device == "cpu" else None


def _packed_on_cpu(scheme: StoredScheme, host: Host, n: int, k: int) -> str | None:
    if host.lacks_avx512:
        return "pack-quantized on a CPU without AVX-512"
    if scheme.activation is not None:
        return f"{scheme.describe()} on a CPU"
    if scheme.bits != 4:
        return f"pack-quantized with {scheme.bits} bits on a CPU (4 only)"
    if scheme.group_size > 0 and scheme.group_size % 2:
        return f"pack-quantized with group_size {scheme.group_size} on a CPU (even only)"
    if n % _CPU_STEP or k % _CPU_STEP:
        return f"a pack-quantized matrix of {n} x {k} on a CPU (multiples of {_CPU_STEP} only)"
    return None


def _int8(scheme: StoredScheme, host: Host) -> str | None:
    act = scheme.activation
    if act is None:
        return "compressed-tensors W8A16 int-quantized"
    if scheme.group_size not in (PER_CHANNEL, PER_TENSOR):
        return "INT8 W8A8 with grouped weights"
    if not scheme.symmetric:
        return "INT8 W8A8 with asymmetric weights"
    if act.strategy != ("token" if act.dynamic else "tensor"):
        return f"INT8 activations {'dynamic' if act.dynamic else 'static'} per {act.strategy}"
    return "INT8 W8A8 on a CPU without VNNI (its sums saturate)" if host.lacks_vnni else None


def experts_in_tree(scheme: StoredScheme, host: Host) -> str | None:
    """Why no method of vLLM serves experts of the scheme, None when one does."""
    if host.device == "cpu":
        return f"{scheme.describe()} experts on a CPU"
    layout, act = scheme.storage["layout"], scheme.activation
    if layout == "float-quantized" and act is None:
        return "experts of weight-only FP8"
    if layout == "int-quantized" and (act is None or not act.dynamic):
        return f"{scheme.describe()} experts"
    return linear_in_tree(scheme, host)


def embedding_in_tree(scheme: StoredScheme, host: Host) -> str | None:
    """Why vLLM does not look up embeddings of the scheme, None when it does."""
    plain = scheme.storage["layout"] == "pack-quantized" and scheme.activation is None and scheme.symmetric
    if host.device == "cpu" or not plain or not reaches_the_kernels(scheme):
        return f"{scheme.describe()} embeddings" + (" on a CPU" if host.device == "cpu" else "")
    return None
