"""The planner's Python face: ``make_plan(PlanRequest(...)) -> Plan``. No torch."""

from __future__ import annotations

from vllm_quant_plugin.checkpoint import Checkpoint
from vllm_quant_serve.plan.types import Candidate, Interval, Objective, Plan, PlanRequest

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
        NoFeasiblePlanError: nothing fits; the message says what is missing and how to mend it.
    """
    from vllm_quant_serve.plan.search.choose import choose_plan

    plan = choose_plan(request, checkpoint)
    if not request.exact:
        return plan
    from vllm_quant_serve.plan.exact.verify import verified

    return verified(request, plan)
