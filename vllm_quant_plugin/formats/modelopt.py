"""NVIDIA ModelOpt checkpoints (``quant_method: modelopt``): NVFP4 and FP8. Sized, not served.

Either the keys stand in ``quantization_config`` itself, or below its ``quantization`` (hf_quant_config.json).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from vllm_quant_kernels.scheme import E4M3, PER_TENSOR, Float
from vllm_quant_plugin.errors import CheckpointError
from vllm_quant_plugin.formats.base import Headers, ShardStep, TensorSpec
from vllm_quant_plugin.formats.eight_bit import eight_bit_bytes, eight_bit_step, holds_eight_bit, weight_shape
from vllm_quant_plugin.formats.fields import Enumeration, Fields
from vllm_quant_plugin.formats.fp4 import NVFP4, Fp4Format
from vllm_quant_plugin.formats.host import Host
from vllm_quant_plugin.formats.kv_cache import kv_cache_of
from vllm_quant_plugin.schemes import ModelScheme, Rule, Storage, StoredScheme

STORAGE = Storage("modelopt")
_HARMLESS = ("quant_method", "producer", "quantization", "group_size", "config_groups")
ALGORITHM = Enumeration({"nvfp4": "nvfp4", "nvfp4_awq": "nvfp4", "w4a16_nvfp4": "nvfp4", "fp8": "fp8"})
KV_CACHE = Enumeration({"fp8": "fp8"})


def _excluded(glob: str) -> Rule:
    """Modules left in 16 bits, by a name with ``*`` as the exclusion lists of ModelOpt write it."""
    return Rule(".*".join(re.escape(part) for part in glob.split("*")) + r"(\.|$)", None)


class ModelOptFormat(Fp4Format):
    name: ClassVar[str] = "modelopt"
    methods: ClassVar[tuple[str, ...]] = ("modelopt", "modelopt_fp4")
    leaves: ClassVar[tuple[str, ...]] = ("weight", "weight_scale", "weight_scale_2", "input_scale")

    def parse(self, config: Mapping[str, Any]) -> ModelScheme:
        nested = config.get("quantization")
        fields = Fields(nested if isinstance(nested, Mapping) else config)
        fields.harmless(_HARMLESS)
        algorithm = fields.choice("quant_algo", of=ALGORITHM, default="", what="ModelOpt quant_algo")
        excluded = tuple(_excluded(name) for name in fields.names("exclude_modules", "ignore"))
        named = fields.choice("kv_cache_quant_algo", of=KV_CACHE, default="", what="ModelOpt kv_cache_quant_algo")
        kv_cache = named or kv_cache_of(fields)
        fields.finish()
        if not algorithm:
            raise CheckpointError("the ModelOpt config has no quant_algo", "fix config.json or hf_quant_config.json")
        fp8 = StoredScheme(E4M3, PER_TENSOR, storage=STORAGE)
        scheme = fp8 if algorithm == "fp8" else StoredScheme.of(NVFP4, STORAGE)
        return ModelScheme("modelopt", scheme, excluded, kv_cache=kv_cache)

    def tensors(self, scheme: StoredScheme, n: int, k: int) -> dict[str, TensorSpec]:
        if scheme.value == E4M3:
            return {
                "weight": TensorSpec(((n, k),), ("float8_e4m3fn",)),
                "weight_scale": TensorSpec(((), (1,)), ("float32",)),
            }
        return super().tensors(scheme, n, k)

    def holds(self, scheme: StoredScheme, headers: Headers) -> bool:
        return holds_eight_bit(headers)

    def shape(self, scheme: StoredScheme, headers: Headers) -> tuple[int, int]:
        return weight_shape(headers) if _is_fp8(scheme) else super().shape(scheme, headers)

    def in_tree(self, scheme: StoredScheme, host: Host) -> str | None:
        return f"ModelOpt {scheme.describe()} on a CPU" if host.device == "cpu" else None

    def readable(self, scheme: StoredScheme) -> bool:
        return False

    def shard_step(self, scheme: StoredScheme, k: int) -> ShardStep:
        return eight_bit_step(scheme) if _is_fp8(scheme) else super().shard_step(scheme, k)

    def in_tree_bytes(self, scheme: StoredScheme, n: int, k: int, full_k: int, itemsize: int) -> int:
        if _is_fp8(scheme):
            return eight_bit_bytes(scheme, n, k, full_k)
        return super().in_tree_bytes(scheme, n, k, full_k, itemsize)


def _is_fp8(scheme: StoredScheme) -> bool:
    return isinstance(scheme.value, Float) and scheme.value.bits == 8
