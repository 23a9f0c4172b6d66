"""The steps of a plan: check the request, resolve devices and model, choose a placement, ask vLLM. No torch."""

from __future__ import annotations

from vllm_quant_plugin.checkpoint import Checkpoint
from vllm_quant_serve.plan.devices.resolve import resolve_pools
from vllm_quant_serve.plan.model.load import load_model
from vllm_quant_serve.plan.request import PlanRequest
from vllm_quant_serve.plan.search.choose import choose
from vllm_quant_serve.plan.search.context import Context
from vllm_quant_serve.plan.types import Plan


def plan_in_context(request: PlanRequest, checkpoint: Checkpoint | None = None) -> tuple[Context, Plan]:
    """The plan, and the context under which it was made. See ``api.make_plan``."""
    request.check()
    pools = resolve_pools(request)
    model = load_model(request, checkpoint)
    context, plan = choose(request, model, pools)
    if request.exact:
        from vllm_quant_serve.plan.exact.verify import verified

        plan = verified(context, plan)
    return context, plan
