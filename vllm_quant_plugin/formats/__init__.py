"""On-disk formats, one module each; ``registry`` is what the rest of the package asks. No torch at import."""

from __future__ import annotations

from vllm_quant_plugin.formats.awq import AwqFormat
from vllm_quant_plugin.formats.base import Format, Provenance, ShardStep, TensorSpec
from vllm_quant_plugin.formats.bitsandbytes import BitsAndBytesFormat
from vllm_quant_plugin.formats.compressed_tensors import CompressedTensorsFormat
from vllm_quant_plugin.formats.dense import DenseFormat
from vllm_quant_plugin.formats.fp8 import Fp8Format
from vllm_quant_plugin.formats.gptq import GptqFormat
from vllm_quant_plugin.formats.host import Host
from vllm_quant_plugin.formats.modelopt import ModelOptFormat
from vllm_quant_plugin.formats.mxfp4 import Mxfp4Format
from vllm_quant_plugin.formats.registry import (
    as_stored,
    format_named,
    formats,
    get_format,
    parse_quantization_config,
    plugin_method,
    register_format,
    stored_scheme,
)
from vllm_quant_plugin.formats.verdict import why_in_tree_rejects

for _format in (
    AwqFormat(), GptqFormat(), Fp8Format(), CompressedTensorsFormat(), DenseFormat(), BitsAndBytesFormat(),
    ModelOptFormat(), Mxfp4Format(),
):  # fmt: skip
    register_format(_format)

__all__ = [
    "Format", "Host", "Provenance", "ShardStep", "TensorSpec", "as_stored", "format_named", "formats", "get_format",
    "parse_quantization_config", "plugin_method", "register_format", "stored_scheme", "why_in_tree_rejects",
]  # fmt: skip
