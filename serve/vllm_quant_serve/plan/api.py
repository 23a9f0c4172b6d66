"""The planner's Python API: ``make_plan(PlanRequest(...)) -> Plan``. No torch."""

from __future__ import annotations

from vllm_quant_plugin.checkpoint import Checkpoint
from vllm_quant_serve.plan.devices.resolve import resolve_pools
from vllm_quant_serve.plan.model.load import load_model
from vllm_quant_serve.plan.options import Objective
from vllm_quant_serve.plan.request import PlanRequest
from vllm_quant_serve.plan.search.choose import choose
from vllm_quant_serve.plan.search.context import Context
from vllm_quant_serve.plan.types import Candidate, Interval, Plan

__all__ = ["Candidate", "Interval", "Objective", "Plan", "PlanRequest", "make_plan"]


def make_plan(request: PlanRequest, checkpoint: Checkpoint | None = None) -> Plan:
    """The best placement of a model on the given devices.

    Args:
        request: the question.
        checkpoint: the model where it was read already, or a config without a folder; by default
            ``request.model`` is read.

    Raises:
        CheckpointError: the model cannot be read.
        UsageError: a flag is out of range or unknown.
        NoFeasiblePlanError: nothing fits; the message says what is missing and how to fix it.
        BackendError: with ``exact``, vLLM is missing here or refuses the model.
    """
    return plan_in_context(request, checkpoint)[1]


def plan_in_context(request: PlanRequest, checkpoint: Checkpoint | None = None) -> tuple[Context, Plan]:
    """As ``make_plan``, with the context under which the plan was made."""
    request.check()
    pools = resolve_pools(request)
    model = load_model(request, checkpoint)
    context, plan = choose(request, model, pools)
    if request.exact:
        from vllm_quant_serve.plan.exact.verify import verified

        plan = verified(context, plan)
    return context, plan
