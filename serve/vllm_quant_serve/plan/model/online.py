"""The scheme of a 16-bit checkpoint that is quantized while it loads. No torch."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from vllm_quant_kernels.scheme import E4M3, PER_CHANNEL, PER_TENSOR
from vllm_quant_plugin.errors import CheckpointError, UsageError
from vllm_quant_plugin.formats.compressed_tensors import FLOAT_QUANTIZED
from vllm_quant_plugin.formats.registry import formats, vllm_methods
from vllm_quant_plugin.online import ALIASES, online_scheme, quantizes_online
from vllm_quant_plugin.schemes import ModelScheme, StoredScheme

# vLLM's own methods; the scale of the activations is not stored, so that only the weights count here.
_IN_TREE = {
    "fp8": StoredScheme(E4M3, PER_TENSOR, storage=FLOAT_QUANTIZED),
    "fp8_per_channel": StoredScheme(E4M3, PER_CHANNEL, storage=FLOAT_QUANTIZED),
}


def scheme_while_loading(quantization: str, options: Mapping[str, Any]) -> ModelScheme:
    """The scheme that ``--quantization`` gives a 16-bit checkpoint.

    Args:
        options: its ``quantization_config``, from ``--hf-overrides``; may be empty.

    Raises:
        CheckpointError: the method quantizes nothing while loading, or an option is unknown or impossible.
        UsageError: the name is that of no method known here.
    """
    if quantizes_online(quantization):
        return online_scheme(quantization, options)
    scheme = _IN_TREE.get(quantization)
    if scheme is None:
        stored = [*vllm_methods(), *(name for one in formats() for name in one.methods)]
        if quantization not in stored:
            known = sorted({*stored, *_IN_TREE, *ALIASES})
            close = difflib.get_close_matches(quantization, known, 1)
            raise UsageError(
                f"--quantization {quantization} is unknown",
                f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}",
            )
        raise CheckpointError(
            f"--quantization {quantization} needs a quantized checkpoint and this one is in 16 bits",
            f"quantize it first, or use one that quantizes while loading: vqp_int8, vqp_fp8, {', '.join(_IN_TREE)}",
        )
    return ModelScheme(quantization, scheme)
