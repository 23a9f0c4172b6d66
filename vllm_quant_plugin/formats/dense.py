"""Unquantized weights that are quantized while they load (``-q vqp_int8`` or ``vqp_fp8`` on a 16-bit checkpoint).

weight  bf16, fp16 or fp32 (N, K)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from vllm_quant_kernels.scheme import PER_TENSOR, WeightScheme
from vllm_quant_plugin.errors import CheckpointError
from vllm_quant_plugin.formats.base import FLOATS, Format, Headers, TensorSpec, check_group
from vllm_quant_plugin.formats.eight_bit import eight_bit_bytes, weight_shape
from vllm_quant_plugin.schemes import ModelScheme, Storage, StoredScheme

if TYPE_CHECKING:
    import torch

    from vllm_quant_kernels.canonical import CanonicalWeight
    from vllm_quant_plugin.formats.base import Tensors

STORAGE = Storage("dense")
PIECE = 1 << 17  # weights: their FP32 intermediates stay in the cache, and the allocator uses the same pages again
GPU_PIECE = 1 << 23  # launches cost more than the memory: 32 MB per intermediate


def rows_at_a_time(k: int, block_n: int, piece: int = PIECE) -> int:
    """Rows of about ``piece`` weights, whole blocks of ``block_n``."""
    return max(1, piece // (k * block_n)) * block_n


class DenseFormat(Format):
    name: ClassVar[str] = "dense"
    methods: ClassVar[tuple[str, ...]] = ()

    def parse(self, config: Mapping[str, Any]) -> ModelScheme:
        raise CheckpointError("a 16-bit checkpoint has no quantization_config", "fix config.json")

    def tensors(self, scheme: StoredScheme, n: int, k: int) -> dict[str, TensorSpec]:
        if scheme.is_int:
            check_group(scheme, k, "online quantization")
        return {"weight": TensorSpec(((n, k),), FLOATS, output_dim=0, input_dim=1)}

    def scale_dtype(self, scheme: WeightScheme, model: str) -> str:
        return "float32"

    def in_tree_bytes(self, scheme: StoredScheme, n: int, k: int, full_k: int, itemsize: int) -> int:
        return eight_bit_bytes(scheme, n, k, full_k)

    def holds(self, scheme: StoredScheme, headers: Headers) -> bool:
        return "weight" in headers

    def shape(self, scheme: StoredScheme, headers: Headers) -> tuple[int, int]:
        return weight_shape(headers)

    def unpack(self, tensors: Tensors, scheme: StoredScheme, n: int, k: int) -> CanonicalWeight:
        from vllm_quant_kernels.canonical import concat_rows
        from vllm_quant_plugin.rtn import quantize

        weight = tensors["weight"]
        if scheme.group_size == PER_TENSOR:
            return quantize(weight, scheme)
        piece = PIECE if weight.device.type == "cpu" else GPU_PIECE
        rows = rows_at_a_time(k, scheme.block[0] if scheme.block else 1, piece)
        return concat_rows([quantize(part, scheme) for part in weight.split(rows)])

    def pack(self, weight: CanonicalWeight, scheme: StoredScheme) -> dict[str, torch.Tensor]:
        import torch

        return {"weight": weight.dequantize(torch.float32)}
