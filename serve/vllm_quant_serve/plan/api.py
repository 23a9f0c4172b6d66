"""The planner's Python face: ``make_plan(PlanRequest(...)) -> Plan``. No torch."""

from __future__ import annotations

from vllm_quant_serve.plan.types import Candidate, Interval, Objective, Plan, PlanRequest

__all__ = ["Candidate", "Interval", "Objective", "Plan", "PlanRequest", "make_plan"]


def make_plan(request: PlanRequest) -> Plan:
    """The best placement of a model on the given devices.

    Raises:
        CheckpointError: the model cannot be read.
        UsageError: a flag is out of range or unknown.
        NoFeasiblePlanError: nothing fits; the message says what is missing and how to mend it.
    """
    from vllm_quant_serve.plan.choose import choose_plan

    plan = choose_plan(request)
    if not request.exact:
        return plan
    from vllm_quant_serve.plan.verify import verified

    return verified(request, plan)
