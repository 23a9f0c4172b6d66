"""The placement of a model on the pools of devices that the objective prefers. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_quant_serve.plan.devices.pool import Devices
from vllm_quant_serve.plan.model.load import Model
from vllm_quant_serve.plan.request import PlanRequest
from vllm_quant_serve.plan.search.context import Context, load_context
from vllm_quant_serve.plan.search.find import find_best
from vllm_quant_serve.plan.search.heterogeneous import plan_pools
from vllm_quant_serve.plan.search.refuse import refuse
from vllm_quant_serve.plan.search.result import to_plan
from vllm_quant_serve.plan.types import Plan


def choose(request: PlanRequest, model: Model, pools: Sequence[Devices]) -> tuple[Context, Plan]:
    """The plan, and the context under which it was made.

    Raises:
        NoFeasiblePlanError: nothing fits.
    """
    contexts = [load_context(request, model, pool) for pool in pools]
    return plan_pools(contexts) if len(contexts) > 1 else plan_context(contexts[0])


def plan_context(context: Context) -> tuple[Context, Plan]:
    """As ``choose``, for a context of one kind of device."""
    best, evaluated = find_best(context)
    if best is None:
        refuse(context, evaluated)
    context = best.context or context
    return context, to_plan(context, best, evaluated)
