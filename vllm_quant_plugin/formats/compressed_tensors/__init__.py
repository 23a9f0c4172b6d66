"""compressed-tensors, as llm-compressor writes it: ``config`` reads and writes config.json, ``layout`` the tensors."""

from __future__ import annotations

from vllm_quant_plugin.formats.compressed_tensors.layout import CompressedTensorsFormat, storage

__all__ = ["CompressedTensorsFormat", "storage"]
