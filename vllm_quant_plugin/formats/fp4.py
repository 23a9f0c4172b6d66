"""What 4-bit float layouts share: the bytes of codes and block scales. No torch.

MXFP4 and NVFP4 are served by vLLM itself; the plugin sizes them. Sources: vllm/model_executor/layers/quantization
(mxfp4.py, modelopt.py, compressed_tensors) and layers/fused_moe/oracle/mxfp4.py of 0.32 and 0.33.
"""

from __future__ import annotations

import math

from vllm_quant_kernels.scheme import E2M1, ScaleType, WeightScheme
from vllm_quant_plugin.formats.base import Format, Headers, ShardStep, TensorSpec, canonical_step
from vllm_quant_plugin.schemes import StoredScheme

MXFP4 = WeightScheme(E2M1, 32, scale=ScaleType("e8m0"))
NVFP4 = WeightScheme(E2M1, 16, scale=ScaleType("e4m3", per_super=0))
# Experts only; Marlin and TRT-LLM kernels pad an expert's width to 128 and hidden to 256: gate and up have N = width,
# K = hidden, down the reverse; 128 is the common tile, and hidden sizes that it does not divide are padded by 256.
MXFP4_TILE = (128, 128)
GLOBAL_SCALES = 8  # bytes: two float32 of NVFP4, of the weight and of its input


def is_mxfp4(scheme: WeightScheme) -> bool:
    return scheme.value == E2M1 and scheme.scale.dtype == "e8m0"


def fp4_bytes(scheme: WeightScheme, n: int, k: int) -> int:
    """Bytes of one rank's (n, k) matrix, padded to the kernel's tile: half a byte per code and a byte per scale."""
    tile = MXFP4_TILE if is_mxfp4(scheme) else (1, 1)
    n, k = math.ceil(n / tile[0]) * tile[0], math.ceil(k / tile[1]) * tile[1]
    return n * k // 2 + n * math.ceil(k / scheme.group_size) + (0 if is_mxfp4(scheme) else GLOBAL_SCALES)


def fp4_tensors(scheme: WeightScheme, n: int, k: int, codes: str) -> dict[str, TensorSpec]:
    """The tensors of an (n, k) module, its codes by the name ``codes``."""
    groups = -(-k // scheme.group_size)
    return {
        codes: TensorSpec(((n, k // 2),), ("uint8",)),
        "weight_scale": TensorSpec(((n, groups),), ("uint8", "float8_e4m3fn")),
    }


def fp4_step(scheme: WeightScheme) -> ShardStep:
    """Padded shards need no whole number of groups."""
    return ShardStep() if is_mxfp4(scheme) else canonical_step(scheme)


class Fp4Format(Format):
    """A layout of E2M1 codes that only vLLM itself serves: two codes per byte of ``weight``."""

    def tensors(self, scheme: StoredScheme, n: int, k: int) -> dict[str, TensorSpec]:
        return fp4_tensors(scheme, n, k, "weight")

    def holds(self, scheme: StoredScheme, headers: Headers) -> bool:
        weight = headers.get("weight")
        return weight is not None and weight.dtype == "U8"

    def shape(self, scheme: StoredScheme, headers: Headers) -> tuple[int, int]:
        n, half = headers["weight"].shape[-2:]
        return n, 2 * half

    def readable(self, scheme: StoredScheme) -> bool:
        return False

    def shard_step(self, scheme: StoredScheme, k: int) -> ShardStep:
        return fp4_step(scheme)

    def in_tree_bytes(self, scheme: StoredScheme, n: int, k: int, full_k: int, itemsize: int) -> int:
        return fp4_bytes(scheme, n, k)
