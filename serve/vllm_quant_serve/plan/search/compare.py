"""``plan --compare``: one 16-bit model under the methods of this project, side by side. No torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from vllm_quant_plugin.checkpoint import Checkpoint
from vllm_quant_plugin.errors import NoFeasiblePlanError, UsageError
from vllm_quant_serve.plan.devices.resolve import resolve_pools
from vllm_quant_serve.plan.model.load import load_model
from vllm_quant_serve.plan.request import PlanRequest
from vllm_quant_serve.plan.search.choose import plan_context
from vllm_quant_serve.plan.search.context import load_context, with_scheme
from vllm_quant_serve.plan.search.methods import METHODS


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
    request.check()
    pools = resolve_pools(request)
    if len(pools) > 1:
        raise UsageError("--compare is for devices of one kind", "compare on each kind on its own: one --gpu")
    request = replace(request, quantization=None)
    context = load_context(request, load_model(request, checkpoint), pools[0])
    if context.scheme is not None:
        raise UsageError(
            f"{request.model} is quantized already ({context.quantization})", "compare its 16-bit original"
        )
    rows = []
    for method in METHODS:
        loss = {"loss": method.loss, "source": method.source}
        try:
            _, plan = plan_context(with_scheme(context, method.scheme))
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
