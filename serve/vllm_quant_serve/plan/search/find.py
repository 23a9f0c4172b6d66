"""The best placement on devices of one kind. No torch."""

from __future__ import annotations

from dataclasses import replace

from vllm_quant_serve.plan.search.context import Context
from vllm_quant_serve.plan.search.fallbacks import MemoryFallback, memory_fallbacks
from vllm_quant_serve.plan.search.placements import MIN_USEFUL_LENGTH, Evaluated, evaluate, evaluate_all, round_length


def best_of(context: Context, evaluated: list[Evaluated]) -> Evaluated | None:
    """The placement that the objective prefers; ties go to the first, which takes fewer devices.

    Where all fit only by a margin smaller than the estimates' error, the one with the largest margin is taken:
    it is also the first that fits with certainty as memory grows, so that more memory never takes more devices.
    """
    found = [one for one in evaluated if one.feasible and one.speed is not None]
    if not found:
        return None
    sure = [one for one in found if one.sure]
    found = sure or [max(found, key=lambda one: one.fit.slack if one.fit is not None else 0)]
    objective = context.request.objective

    def rank(one: Evaluated) -> tuple[float, ...]:
        assert one.speed is not None
        if objective == "latency":
            return (one.speed.tpot, one.speed.ttft)
        if objective == "throughput":
            return (-one.speed.tokens_per_second,)
        return (-one.speed.tokens_per_second_per_device,)

    return found[0] if objective == "fewest-gpus" else min(found, key=rank)


def find_best(context: Context) -> tuple[Evaluated | None, list[Evaluated]]:
    """The best placement and all that were evaluated.

    Where nothing fits as vLLM would run it, the memory fallbacks are tried first (``fallbacks``); without a length
    from the user the context is shortened before the cache loses precision.
    """
    evaluated = evaluate_all(context)
    best = best_of(context, evaluated)
    if best is not None:
        return best, evaluated
    open_length = context.request.max_model_len is None
    steps = list(memory_fallbacks(context))
    for step in steps[:1] if open_length else steps:
        relaxed = [
            replace(one, flags=step.flags, context=step.context, notes=step.notes) for one in evaluate_all(step.context)
        ]
        best = best_of(context, relaxed)
        if best is not None:
            return best, [*evaluated, *(one for one in relaxed if one.feasible)]
    if open_length:
        shortened: list[Evaluated] = []
        for i, step in enumerate((MemoryFallback({}, context), *steps)):
            best = _shorten(step, evaluated if step.context is context else evaluate_all(step.context))
            shortened += [best] if best is not None else []
            # Fewer sequences cost little: they are tried before a placement that fits by the estimates only.
            if shortened and (shortened[-1].sure or i >= 1):
                break
        if shortened:
            best = shortened[-1] if shortened[-1].sure else shortened[0]
            return best, [*evaluated, best]
    return None, evaluated


def _shorten(step: MemoryFallback, evaluated: list[Evaluated]) -> Evaluated | None:
    """Without a length from the user: the placement that holds the longest context, if that is of use.

    A length that fits at the pessimistic end of the estimates is taken where there is one.
    """
    context = step.context
    useful = min(MIN_USEFUL_LENGTH, context.length)
    fits = [one for one in evaluated if one.fit is not None and one.meets and one.fit.longest >= useful]
    for one in sorted(fits, key=lambda one: (-(one.fit.longest if one.fit else 0), one.place.devices)):
        assert one.fit is not None
        length = round_length(one.fit.certain if one.fit.certain >= useful else one.fit.longest)
        shorter = evaluate(replace(context, length=length, shortened=True), one.place)
        if shorter.feasible:
            flags = {**step.flags, "--max-model-len": str(length)}
            return replace(shorter, flags=flags, context=step.context, notes=step.notes)
    return None
