"""The methods of this project that store a 16-bit model's weights in fewer bits. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_quant_kernels.scheme import E4M3, ActivationScheme, Int
from vllm_quant_plugin.formats.compressed_tensors import FLOAT_QUANTIZED, INT_QUANTIZED
from vllm_quant_plugin.formats.gptq import GPTQ_V2
from vllm_quant_plugin.schemes import ModelScheme, Storage, StoredScheme

_KURTIC = "Kurtic et al. 2024, arXiv:2411.02355"
_AWQ = "Lin et al. 2023, arXiv:2306.00978, Llama-2 7B, WikiText-2"


@dataclass(frozen=True)
class Method:
    """A way to store the weights; ``loss`` is a published measurement, ``source`` its origin.

    Attributes:
        online: the ``--quantization`` that stores them so while a 16-bit model loads; "" for none at all, None where
            the model must be quantized first.
    """

    name: str
    scheme: ModelScheme | None
    loss: str
    source: str
    online: str | None = None


METHODS = (
    Method("BF16", None, "none", "", ""),
    Method(
        "FP8",
        ModelScheme("vqp_fp8", StoredScheme(E4M3, -1, activation=ActivationScheme(E4M3), storage=FLOAT_QUANTIZED)),
        "below 1% of task accuracy", _KURTIC, "vqp_fp8",
    ),
    Method(
        "INT8",
        ModelScheme("vqp_int8", StoredScheme(Int(8), -1, activation=ActivationScheme(Int(8)), storage=INT_QUANTIZED)),
        "1 to 3% of task accuracy", _KURTIC, "vqp_int8",
    ),
    Method("AWQ-4", ModelScheme("awq", StoredScheme(Int(4), 128, symmetric=False, storage=Storage("awq"))),
           "perplexity +2.4%", _AWQ),
    Method("GPTQ-3", ModelScheme("gptq", StoredScheme(Int(3), 128, storage=GPTQ_V2)), "perplexity +18%", _AWQ),
)  # fmt: skip
