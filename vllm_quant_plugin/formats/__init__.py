"""On-disk formats, one file each. ``get_format(scheme)`` finds the one a scheme is stored in."""

from __future__ import annotations

from vllm_quant_plugin.formats.awq import AwqFormat
from vllm_quant_plugin.formats.base import Format, TensorSpec
from vllm_quant_plugin.formats.compressed_tensors import (
    FloatQuantizedFormat,
    IntQuantizedFormat,
    PackQuantizedFormat,
)
from vllm_quant_plugin.formats.dense import DenseFormat
from vllm_quant_plugin.formats.fp8 import Fp8Format
from vllm_quant_plugin.formats.gptq import GptqFormat
from vllm_quant_plugin.scheme import Scheme, StorageFormat

FORMATS: dict[StorageFormat, Format] = {
    "awq": AwqFormat(),
    "gptq": GptqFormat(),
    "fp8": Fp8Format(),
    "pack-quantized": PackQuantizedFormat(),
    "int-quantized": IntQuantizedFormat(),
    "float-quantized": FloatQuantizedFormat(),
    "dense": DenseFormat(),
}


def get_format(scheme: Scheme) -> Format:
    """The format that ``scheme`` is stored in."""
    return FORMATS[scheme.storage]


__all__ = ["FORMATS", "Format", "TensorSpec", "get_format"]
