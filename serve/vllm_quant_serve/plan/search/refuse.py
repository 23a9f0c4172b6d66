"""Nothing fits: what is missing, and what would fix it. No torch."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NoReturn

from vllm_quant_plugin.architecture.placement import Placement
from vllm_quant_plugin.errors import NoFeasiblePlanError
from vllm_quant_serve.plan.search.context import Context, with_scheme
from vllm_quant_serve.plan.search.methods import METHODS
from vllm_quant_serve.plan.search.placements import (
    MIN_USEFUL_LENGTH,
    Evaluated,
    evaluate,
    evaluate_all,
    refusals,
    round_length,
    sizes,
)


def refuse(context: Context, evaluated: list[Evaluated]) -> NoReturn:
    """NoFeasiblePlanError: it names what is missing on the best placement, and what would fix it."""
    legal = [one for one in evaluated if one.fit is not None]
    count, name = context.devices.count, context.devices.gpu.name
    on = f"{count} x {name}" if count > 1 else name
    if not legal:
        first = evaluated[0].reason if evaluated else f"{context.request.data_parallel_size} replicas need more devices"
        hint = _suggest_legal_sizes(context)
        raise NoFeasiblePlanError(f"{context.request.model} cannot be placed on {on}: {first}", hint)
    slow = [one for one in legal if one.speed is not None and not one.meets]
    if slow:
        fastest = min(slow, key=lambda one: (one.speed.tpot, one.speed.ttft) if one.speed else (math.inf, math.inf))
        hint = "relax the limits, lower --concurrency, take faster devices or fewer bits"
        raise NoFeasiblePlanError(
            f"no placement of {context.request.model} on {on} is fast enough: {fastest.reason}", hint
        )
    best = min(legal, key=lambda one: one.fit.missing if one.fit else math.inf)
    raise NoFeasiblePlanError(f"{context.request.model} does not fit {on}: {best.reason}", _suggest_fix(context, best))


def _suggest_legal_sizes(context: Context) -> str:
    """What to do where every requested placement is illegal."""
    request = context.request
    pp, dp = request.pipeline_parallel_size or 1, request.data_parallel_size or 1
    expert = bool(request.enable_expert_parallel)
    legal = [tp for tp in sizes(context.devices.count) if not refusals(context.weights, Placement(tp, pp, dp, expert))]
    if legal:
        return f"tensor-parallel sizes that are legal here: {', '.join(map(str, legal))}"
    return "give more devices, or leave the sizes to the planner"


def _suggest_fix(context: Context, best: Evaluated) -> str:
    advice: list[str] = []
    if best.fit is not None and best.fit.longest >= MIN_USEFUL_LENGTH:
        advice.append(f"--max-model-len {round_length(best.fit.longest)}")
    if context.request.concurrency > 1 and best.fit is not None and best.fit.requests >= 1:
        advice.append(f"--concurrency {best.fit.requests}")
    if not context.devices.is_cpu:
        more = _more_devices(context)
        if more:
            advice.append(more)
    fewer = _fewer_bits(context)
    if fewer:
        advice.append(fewer)
    if not advice:
        return "give more or larger devices, a shorter --max-model-len or fewer bits"
    return "try " + ", ".join(advice)


def _fewer_bits(context: Context) -> str:
    """The first way of quantizing a 16-bit model, the least lossy first, under which it fits."""
    if context.scheme is not None:
        return ""
    for method in METHODS[1:]:
        if any(one.feasible for one in evaluate_all(with_scheme(context, method.scheme))):
            return f"{method.name} (vllm-quant quantize -m {method.name.partition('-')[0].lower()})"
    return ""


def _more_devices(context: Context) -> str:
    """The smallest larger number of the same devices on which it fits."""
    for count in (2, 4, 8, 16, 32, 64):
        if count <= context.devices.count:
            continue
        wider = replace(context, devices=replace(context.devices, count=count))
        for tp in (t for t in (1, 2, 4, 8) if t <= count):
            one = evaluate(wider, Placement(tp, count // tp))
            if one.feasible:
                return f"{count} x {context.devices.gpu.name}"
    return ""
