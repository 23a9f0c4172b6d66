"""bitsandbytes' own layout: NF4 or FP4 with a maximum per 64 elements, or INT8 with one scale per row.

Sized, not served: vLLM dropped the method. With nested scales the maxima are 8-bit themselves, with a float32 per 256
of them. Sources: bitsandbytes functional.py (quantize_4bit, QuantState) and int8 vectorwise quantization (Dettmers et
al., arXiv:2208.07339).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from vllm_quant_kernels.scheme import FLOAT_SCALES, PER_CHANNEL, Codebook, Int, ScaleType
from vllm_quant_plugin.formats.base import Format, Headers, ShardStep, TensorSpec
from vllm_quant_plugin.formats.fields import Enumeration, Fields
from vllm_quant_plugin.formats.host import Host
from vllm_quant_plugin.schemes import ModelScheme, Rule, Storage, StoredScheme

STORAGE = Storage("bitsandbytes")
BLOCK, NESTED_BLOCK = 64, 256
CODE_TABLE = Enumeration({"nf4": "nf4", "fp4": "fp4"}, exact=True)
_HARMLESS = (
    "quant_method", "_load_in_8bit", "load_in_8bit", "bnb_4bit_compute_dtype", "bnb_4bit_quant_storage",
    "llm_int8_threshold", "llm_int8_enable_fp32_cpu_offload", "llm_int8_has_fp16_weight",
)  # fmt: skip


class BitsAndBytesFormat(Format):
    name: ClassVar[str] = "bitsandbytes"
    methods: ClassVar[tuple[str, ...]] = ("bitsandbytes",)
    removed: ClassVar[bool] = True

    def parse(self, config: Mapping[str, Any]) -> ModelScheme:
        fields = Fields(config)
        fields.harmless(_HARMLESS)
        four = fields.boolean("load_in_4bit", "_load_in_4bit", default=False)
        table = fields.choice("bnb_4bit_quant_type", of=CODE_TABLE, default="fp4")
        nested = fields.boolean("bnb_4bit_use_double_quant", default=False)
        names = fields.names("llm_int8_skip_modules")
        fields.finish()
        if four:
            scale = ScaleType("uint8", per_super=NESTED_BLOCK) if nested else FLOAT_SCALES
            scheme = StoredScheme(Codebook(4, table), BLOCK, scale=scale, storage=STORAGE)
        else:
            scheme = StoredScheme(Int(8), PER_CHANNEL, storage=STORAGE)
        return ModelScheme("bitsandbytes", scheme, tuple(Rule(name, None, "contains") for name in names))

    def tensors(self, scheme: StoredScheme, n: int, k: int) -> dict[str, TensorSpec]:
        if scheme.is_int:
            return {"weight": TensorSpec(((n, k),), ("int8",)), "SCB": TensorSpec(((n,),), ("float32",))}
        return {"weight": TensorSpec(((-(-n * k // 2), 1),), ("uint8",))}

    def holds(self, scheme: StoredScheme, headers: Headers) -> bool:
        weight = headers.get("weight")
        return weight is not None and weight.dtype in ("U8", "I8")

    def shape(self, scheme: StoredScheme, headers: Headers) -> tuple[int, int]:
        """(0, 0) for 4 bits: the codes are one column, and their quant_state is not in the headers."""
        weight = headers["weight"]
        return (weight.shape[0], weight.shape[1]) if scheme.is_int else (0, 0)

    def readable(self, scheme: StoredScheme) -> bool:
        return False

    def in_tree(self, scheme: StoredScheme, host: Host) -> str | None:
        return "bitsandbytes checkpoints (vLLM dropped the method)"

    def shard_step(self, scheme: StoredScheme, k: int) -> ShardStep:
        return ShardStep()

    def in_tree_bytes(self, scheme: StoredScheme, n: int, k: int, full_k: int, itemsize: int) -> int:
        """Bytes of codes and maxima of one matrix, with the code tables of 4-bit types."""
        if scheme.is_int:
            return n * k + 4 * n
        blocks = -(-n * k // BLOCK)
        nested = blocks + 4 * -(-blocks // NESTED_BLOCK) + 4 + 256 * 4
        return -(-n * k // 2) + (nested if scheme.scale.per_super else 4 * blocks) + 16 * 4
