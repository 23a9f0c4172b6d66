"""The methods of this project that store a 16-bit model's weights in fewer bits. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_quant_plugin.scheme import ActivationScheme, ModelScheme, Scheme

_KURTIC = "Kurtic et al. 2024, arXiv:2411.02355"
_AWQ = "Lin et al. 2023, arXiv:2306.00978, Llama-2 7B, WikiText-2"


@dataclass(frozen=True)
class Method:
    """A way to store the weights; ``loss`` is a published measurement, ``source`` its origin."""

    name: str
    scheme: ModelScheme | None
    loss: str
    source: str


METHODS = (
    Method("BF16", None, "none", ""),
    Method(
        "FP8",
        ModelScheme("vqp_fp8", Scheme("float-quantized", "fp8_e4m3", 8, -1, activation=ActivationScheme("fp8_e4m3"))),
        "below 1% of task accuracy", _KURTIC,
    ),
    Method(
        "INT8", ModelScheme("vqp_int8", Scheme("int-quantized", "int", 8, -1, activation=ActivationScheme("int"))),
        "1 to 3% of task accuracy", _KURTIC,
    ),
    Method("AWQ-4", ModelScheme("awq", Scheme("awq", bits=4, group_size=128, symmetric=False)),
           "perplexity +2.4%", _AWQ),
    Method("GPTQ-3", ModelScheme("gptq", Scheme("gptq", bits=3, group_size=128)), "perplexity +18%", _AWQ),
)  # fmt: skip
