"""The quantization of a checkpoint as the planner needs it: the plugin's schemes and 4-bit floats. No torch.

MXFP4 and NVFP4 are served by vLLM itself, not by this plugin; the planner only sizes them.
Sources: vllm/model_executor/layers/quantization (mxfp4.py, modelopt.py, compressed_tensors) and
layers/fused_moe/oracle/mxfp4.py of 0.32 and 0.33.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm_quant_plugin.errors import CheckpointError
from vllm_quant_plugin.quant_config import parse_quantization_config
from vllm_quant_plugin.scheme import ModelScheme, Rule, Scheme

# Methods that vLLM dropped; bitsandbytes checkpoints are still sized, so that the refusal can report it.
REMOVED = ("squeezellm", "aqlm", "gguf", "marlin")
SIZE_ONLY = ("bitsandbytes",)


@dataclass(frozen=True)
class FloatScheme(Scheme):
    """4-bit floats with a small scale per group along the input.

    Attributes:
        label: human-readable name.
        scale_bytes: bytes of one group's scale.
        extra_bytes: bytes per matrix besides (global scales).
        tile: (N, K) to whose multiples a kernel pads each rank's shard; (1, 1) for none.
    """

    label: str = ""
    scale_bytes: int = 1
    extra_bytes: int = 0
    tile: tuple[int, int] = (1, 1)

    def describe(self) -> str:
        return self.label

    def legal_tp(self, in_features: int, candidates: Any = (1, 2, 4, 8, 16)) -> list[int]:
        """Padded shards need no whole number of groups."""
        if self.tile == (1, 1):
            return super().legal_tp(in_features, candidates)
        return [tp for tp in candidates if in_features % tp == 0]

    def matrix_bytes(self, out_features: int, in_features: int) -> int:
        """Bytes of one rank's matrix, padded to the tile."""
        n = math.ceil(out_features / self.tile[0]) * self.tile[0]
        k = math.ceil(in_features / self.tile[1]) * self.tile[1]
        return n * k // 2 + n * math.ceil(k / self.group_size) * self.scale_bytes + self.extra_bytes


@dataclass(frozen=True)
class BitsAndBytes(Scheme):
    """bitsandbytes' own layout: NF4 or FP4 with a maximum per 64 elements, or INT8 with one scale per row.

    With ``nested`` the maxima are 8-bit themselves, with a float32 per 256 of them. Sources: bitsandbytes
    functional.py (quantize_4bit, QuantState) and int8 vectorwise quantization (Dettmers et al., arXiv:2208.07339).
    """

    nested: bool = False

    def describe(self) -> str:
        return f"{self.bits}-bit bitsandbytes{' nested' if self.nested else ''}"

    def legal_tp(self, in_features: int, candidates: Any = (1, 2, 4, 8, 16)) -> list[int]:
        return [tp for tp in candidates if in_features % tp == 0]

    def matrix_bytes(self, out_features: int, in_features: int) -> int:
        """Bytes of codes and maxima of one matrix, with the code tables of 4-bit types."""
        elements = out_features * in_features
        if self.bits == 8:
            return elements + 4 * out_features
        blocks = math.ceil(elements / 64)
        maxima = blocks + 4 * math.ceil(blocks / 256) + 4 + 256 * 4 if self.nested else 4 * blocks
        return math.ceil(elements / 2) + maxima + 16 * 4


def _bitsandbytes(config: Mapping[str, Any]) -> ModelScheme:
    bits = 4 if config.get("load_in_4bit") or config.get("_load_in_4bit") else 8
    scheme = BitsAndBytes("pack-quantized", bits=bits, group_size=64 if bits == 4 else -1,
                          nested=bool(config.get("bnb_4bit_use_double_quant")))  # fmt: skip
    names = _strings(config.get("llm_int8_skip_modules"), "llm_int8_skip_modules")
    return ModelScheme("bitsandbytes", scheme, tuple(Rule(name, None, "contains") for name in names))


# Experts only; Marlin and TRT-LLM kernels pad an expert's width to 128 and hidden to 256: gate and up have N = width,
# K = hidden, down the reverse; 128 is the common tile, and hidden sizes that it does not divide are padded by 256.
MXFP4 = FloatScheme("pack-quantized", bits=4, group_size=32, label="MXFP4", tile=(128, 128))
NVFP4 = FloatScheme("pack-quantized", bits=4, group_size=16, label="NVFP4", extra_bytes=8)


def _excluded(glob: str) -> Rule:
    """Modules left in 16 bits, by a name with ``*`` as the exclusion lists of ModelOpt write it."""
    return Rule(".*".join(re.escape(part) for part in glob.split("*")) + r"(\.|$)", None)


def _strings(value: Any, what: str) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise CheckpointError(f"quantization_config.{what} must be a list of strings", "fix config.json")
    return value


def _modelopt(config: Mapping[str, Any]) -> ModelScheme:
    fields = config.get("quantization") if isinstance(config.get("quantization"), dict) else config
    assert isinstance(fields, Mapping)
    algorithm = str(fields.get("quant_algo") or "").upper()
    names = _strings(fields.get("exclude_modules") or fields.get("ignore"), "exclude_modules")
    excluded = tuple(_excluded(name) for name in names)
    kv_cache = "fp8" if str(fields.get("kv_cache_quant_algo") or "").upper() == "FP8" else None
    if algorithm in ("NVFP4", "NVFP4_AWQ", "W4A16_NVFP4"):
        return ModelScheme("modelopt", NVFP4, excluded, kv_cache=kv_cache)
    if algorithm == "FP8":
        scheme = Scheme("fp8", "fp8_e4m3", 8, 0)
        return ModelScheme("modelopt", scheme, excluded, kv_cache=kv_cache)
    raise CheckpointError(
        f"ModelOpt quant_algo {algorithm or 'missing'!r} is not one the planner knows", "NVFP4 and FP8 are"
    )


def _float_pack(config: Mapping[str, Any]) -> ModelScheme | None:
    """compressed-tensors' ``nvfp4-pack-quantized`` and ``mxfp4-pack-quantized``; None for its other formats."""
    layout = str(config.get("format") or "")
    scheme = {"nvfp4-pack-quantized": NVFP4, "mxfp4-pack-quantized": MXFP4}.get(layout)
    if scheme is None:
        return None
    rules = []
    for name in _strings(config.get("ignore"), "ignore"):
        rules.append(Rule(name.removeprefix("re:"), None) if name.startswith("re:") else Rule(name, None, "path"))
    return ModelScheme("compressed-tensors", scheme, tuple(rules), lm_head=True)


def read_scheme(config: Any) -> ModelScheme | None:
    """The scheme of a ``quantization_config``, None for none.

    Raises:
        CheckpointError: unknown, malformed, or of a kind that vLLM does not serve any more.
    """
    if not config:
        return None
    if not isinstance(config, Mapping):
        raise CheckpointError("config.json: quantization_config must be an object", "fix config.json")
    method = str(config.get("quant_method") or "").lower()
    if method in REMOVED:
        raise CheckpointError(
            f"vLLM has no {method} method any more", "quantize the 16-bit model with vllm-quant quantize"
        )
    if method == "bitsandbytes":
        return _bitsandbytes(config)
    if method in ("mxfp4", "gpt_oss_mxfp4"):
        return ModelScheme("mxfp4", None, (Rule(".experts.", MXFP4, "contains"),))
    if method in ("modelopt", "modelopt_fp4"):
        return _modelopt(config)
    try:
        return _float_pack(config) or parse_quantization_config(config)
    except (AttributeError, KeyError, TypeError, ValueError) as err:
        if isinstance(err, CheckpointError):
            raise
        raise CheckpointError("config.json: quantization_config is malformed", "fix config.json") from None
