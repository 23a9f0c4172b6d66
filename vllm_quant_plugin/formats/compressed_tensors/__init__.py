"""compressed-tensors, as llm-compressor writes it: ``config`` reads and writes config.json, ``layout`` the tensors."""

from __future__ import annotations

from vllm_quant_plugin.formats.compressed_tensors.config import FLOAT_QUANTIZED, INT_QUANTIZED, PACK_QUANTIZED, storage
from vllm_quant_plugin.formats.compressed_tensors.layout import CompressedTensorsFormat

__all__ = ["FLOAT_QUANTIZED", "INT_QUANTIZED", "PACK_QUANTIZED", "CompressedTensorsFormat", "storage"]
