"""``plan --compare``: one 16-bit model under the methods of this project, side by side. No torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from vllm_quant_plugin.checkpoint import Checkpoint
from vllm_quant_plugin.errors import NoFeasiblePlanError, UsageError
from vllm_quant_plugin.scheme import ActivationScheme, ModelScheme, Scheme
from vllm_quant_serve.plan.devices.hardware import resolve_pools
from vllm_quant_serve.plan.search.choose import check_request, plan_context
from vllm_quant_serve.plan.search.context import load_context, with_scheme
from vllm_quant_serve.plan.types import PlanRequest

_KURTIC = "Kurtic et al. 2024, arXiv:2411.02355"
_AWQ = "Lin et al. 2023, arXiv:2306.00978, Llama-2 7B, WikiText-2"


@dataclass(frozen=True)
class Method:
    """A way to store the weights; ``loss`` is what others measured, ``source`` where."""

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


@dataclass(frozen=True)
class Row:
    """One method's outcome; the figures are None where it does not fit."""

    method: str
    fits: bool
    reason: str
    devices: int | None
    weight_bytes_per_rank: int | None
    kv_tokens: int | None
    tpot: float | None
    tokens_per_second: float | None
    loss: str
    source: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(request: PlanRequest, checkpoint: Checkpoint | None = None) -> list[Row]:
    """The plan of ``request`` under every method.

    Raises:
        UsageError: the checkpoint is quantized already, or there are several kinds of device.
    """
    check_request(request)
    if len(resolve_pools(request)) > 1:
        raise UsageError("--compare is for devices of one kind", "compare on each kind on its own: one --gpu")
    context = load_context(replace(request, quantization=None), checkpoint)
    if context.scheme is not None:
        raise UsageError(
            f"{request.model} is quantized already ({context.quantization})", "compare its 16-bit original"
        )
    rows = []
    for method in METHODS:
        loss = {"loss": method.loss, "source": method.source}
        try:
            plan = plan_context(with_scheme(context, method.scheme))
        except NoFeasiblePlanError as error:
            rows.append(Row(method.name, False, error.message, None, None, None, None, None, **loss))
            continue
        speed = plan.prediction
        devices = plan.tensor_parallel_size * plan.pipeline_parallel_size * plan.data_parallel_size
        rows.append(Row(
            method.name, True, "; ".join(plan.notes), devices, plan.weight_bytes_per_rank, plan.kv_tokens.value,
            speed.tpot if speed else None, speed.tokens_per_second if speed else None, **loss,
        ))  # fmt: skip
    return rows
