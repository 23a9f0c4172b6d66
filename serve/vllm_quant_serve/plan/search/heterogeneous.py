"""GPUs of several kinds: each kind alone or, where none is enough, a pipeline through them. No torch.

Tensor parallelism stays within a kind. A pipeline gives each stage layers by its memory (VLLM_PP_LAYER_PARTITION);
vLLM then takes the fewest KV blocks of all stages.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

from vllm_quant_plugin.architecture.placement import Placement
from vllm_quant_serve.plan.devices.gpus import Gpu
from vllm_quant_serve.plan.devices.pool import Devices
from vllm_quant_serve.plan.search.context import Context
from vllm_quant_serve.plan.search.find import best_of, find_best
from vllm_quant_serve.plan.search.fit import fit_stage, worst_of
from vllm_quant_serve.plan.search.placements import Evaluated, evaluate_all, label, sizes, with_speed
from vllm_quant_serve.plan.search.refuse import refuse
from vllm_quant_serve.plan.search.result import to_plan, visible_devices
from vllm_quant_serve.plan.types import Plan

MOST_PIPELINES = 64
MOST_CONSIDERED = 10_000


def plan_pools(contexts: Sequence[Context]) -> tuple[Context, Plan]:
    """The best plan over devices of several kinds, and the context under which it was made.

    Raises:
        NoFeasiblePlanError: nothing fits.
    """
    evaluated = [_named(one, context) for context in contexts for one in evaluate_all(context)]
    evaluated.sort(
        key=lambda one: (one.place.pp > 1, one.place.devices, -one.speed.tokens_per_second if one.speed else 0)
    )
    if not any(one.sure for one in evaluated):
        evaluated += pipelines(contexts)
    best = best_of(contexts[0], evaluated)
    if best is None:
        for context in contexts:
            found, _ = find_best(context)
            if found is not None:
                best = _named(found, found.context or context)
                evaluated.append(best)
                break
    if best is None:
        refuse(max(contexts, key=lambda c: c.devices.gpu.memory * c.devices.count), evaluated)
    context = best.context or contexts[0]
    plan = to_plan(context, best, evaluated)
    return context, replace(plan, notes=(*plan.notes, *_unused(contexts, best)))


def _preference(one: Evaluated) -> tuple[bool, int, float]:
    """No pipeline before any, then fewer devices, then the faster."""
    return one.place.pp > 1, one.place.devices, -one.speed.tokens_per_second if one.speed else 0


def _named(one: Evaluated, context: Context) -> Evaluated:
    return replace(one, context=one.context or context, device=context.devices.gpu.name)


def _unused(contexts: Sequence[Context], best: Evaluated) -> list[str]:
    """A remark on the kinds that the plan leaves idle."""
    names = [f"{c.devices.count} x {c.devices.gpu.name}" for c in contexts if c.devices.gpu.name not in best.device]
    return [f"not used: {', '.join(names)}; another server may run there"] if names else []


def pipelines(contexts: Sequence[Context]) -> Iterator[Evaluated]:
    """Pipelines through at least two kinds, fewest devices first."""
    request = contexts[0].request
    tp_sizes = [request.tensor_parallel_size] if request.tensor_parallel_size else sizes(8)
    # Each is in order, so that their merge is, too, and no more are made than are looked at.
    ordered = heapq.merge(*(_pipelines_of(contexts, tp) for tp in tp_sizes))
    for _, _, tp, counts in itertools.islice(ordered, MOST_PIPELINES):
        one = evaluate_across(contexts, tp, counts)
        yield one
        if one.sure:
            return


def _pipelines_of(contexts: Sequence[Context], tp: int) -> Iterator[tuple[int, int, int, tuple[int, ...]]]:
    """Devices, stages, TP and stages of each kind, of the pipelines whose memory holds the weights; fewest first."""
    layers, asked = len(contexts[0].arch.layers), contexts[0].request.pipeline_parallel_size
    caps = [min(c.devices.count // tp, layers) for c in contexts]
    memory = [c.devices.gpu.memory for c in contexts]
    # Ranks of one tensor-parallel position hold the whole model together.
    least = contexts[0].weights.weights(Placement(tp)).worst
    every = (
        (stages, counts)
        for stages in ([asked] if asked else range(2, min(layers, sum(caps)) + 1))
        for counts in _compositions(stages, caps)
    )
    for stages, counts in itertools.islice(every, MOST_CONSIDERED):
        room = sum(count * one for count, one in zip(counts, memory, strict=True))
        if sum(n > 0 for n in counts) > 1 and stages <= layers and room > least:
            yield tp * stages, stages, tp, counts


def _compositions(total: int, caps: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Ways to write ``total`` as a sum of numbers from 0 to each cap, in lexicographic order."""
    if not caps:
        if total == 0:
            yield ()
        return
    for first in range(max(0, total - sum(caps[1:])), min(caps[0], total) + 1):
        for rest in _compositions(total - first, caps[1:]):
            yield first, *rest


def evaluate_across(contexts: Sequence[Context], tp: int, counts: Sequence[int]) -> Evaluated:
    """A pipeline of ``counts`` stages of each kind, ``tp`` ranks each."""
    contexts = _aligned(contexts)
    owners = [kind for kind, count in enumerate(counts) for _ in range(count)]
    place = Placement(tp, len(owners))
    name = " + ".join(f"{n * tp} x {c.devices.gpu.name}" for n, c in zip(counts, contexts, strict=True) if n)
    reasons = list(contexts[0].weights.refusals(place))
    if not reasons:
        place = replace(place, layers=tuple(spread(contexts, place, owners)))
        reasons = list(contexts[0].weights.refusals(place))
    if reasons:
        return Evaluated(place, None, f"{label(place)}: {reasons[0]}", device=name)
    fits = [fit_stage(contexts[kind], place, stage) for stage, kind in enumerate(owners)]
    fit = worst_of(fits)
    tightest = contexts[owners[fits.index(fit)]]
    everything = Devices(
        blended([contexts[k].devices.gpu for k in owners], place.layers), sum(c.devices.count for c in contexts),
        note="; ".join(dict.fromkeys(c.devices.note for c in contexts)),
    )  # fmt: skip
    one = with_speed(replace(tightest, devices=everything), place, fit)
    # Figures of memory are those of the rank that limits the cache.
    shown = replace(everything, gpu=replace(everything.gpu, memory=tightest.devices.gpu.memory))
    env = {"VLLM_PP_LAYER_PARTITION": ",".join(map(str, place.layers)), **_device_order(contexts, counts, tp)}
    flags = _default_flags(contexts[0])
    return replace(one, context=replace(tightest, devices=shown), device=name, flags=flags, env=env)


def _aligned(contexts: Sequence[Context]) -> list[Context]:
    """One launch has one setting: the least of the defaults, and the first kind's block size."""
    first = min(contexts, key=lambda c: c.max_num_batched_tokens)
    sequences = min(c.default_max_num_seqs for c in contexts)
    kv = replace(contexts[0].kv, in_flight=first.kv.in_flight, encoder_tokens=first.kv.encoder_tokens)
    return [
        replace(c, max_num_batched_tokens=first.max_num_batched_tokens, default_max_num_seqs=sequences, kv=kv)
        for c in contexts
    ]


def _default_flags(context: Context) -> dict[str, str]:
    """The defaults differ by GPU, so they are fixed by flags where the user left them open."""
    request, flags = context.request, {}
    if request.max_num_seqs is None:
        flags["--max-num-seqs"] = str(max(context.default_max_num_seqs, request.concurrency))
    if request.max_num_batched_tokens is None:
        flags["--max-num-batched-tokens"] = str(context.max_num_batched_tokens)
    return flags


def _device_order(contexts: Sequence[Context], counts: Sequence[int], tp: int) -> dict[str, str]:
    """The GPUs of this host in the order of the stages."""
    indices = [c.devices.indices[: n * tp] for c, n in zip(contexts, counts, strict=True)]
    chosen = tuple(itertools.chain.from_iterable(indices))
    return visible_devices(replace(contexts[0].devices, indices=chosen)) if chosen else {}


def spread(contexts: Sequence[Context], place: Placement, owners: Sequence[int]) -> list[int]:
    """Layers of each stage: by memory at first, then moved while the least room per layer grows."""
    per_layer = [sum(pair) for pair in zip(*contexts[0].weights.layer_bytes(place), strict=True)]
    total, stages = len(per_layer), len(owners)
    room = [int(contexts[k].devices.gpu.memory * contexts[k].default_utilization) for k in owners]
    even = contexts[0].weights.weights(place)
    counts = place.stages(total)
    start, ends = 0, []
    for count, nbytes in zip(counts, even.stages, strict=True):
        ends.append(nbytes - sum(per_layer[start : start + count]))
        start += count
    split = [max(1, total * one // sum(room)) for one in room]
    split[room.index(max(room))] += total - sum(split)

    def worth(split: Sequence[int]) -> list[float]:
        """Bytes left per layer, of each stage."""
        found, start = [], 0
        for count, limit, fixed in zip(split, room, ends, strict=True):
            found.append((limit - fixed - sum(per_layer[start : start + count])) / max(count, 1))
            start += count
        return found

    for _ in range(4 * total):
        now = worth(split)
        worst, best = now.index(min(now)), now.index(max(now))
        if split[worst] <= 1 or stages == 1:
            break
        moved = list(split)
        moved[worst] -= 1
        moved[best] += 1
        if min(worth(moved)) <= min(now):
            break
        split = moved
    return split


def blended(gpus: Sequence[Gpu], layers: Sequence[int]) -> Gpu:
    """One GPU as fast as the stages in sequence: harmonic means of their rates, weighted by layers."""
    total = sum(layers)

    def mean(rates: Sequence[float]) -> float:
        return total / sum(count / rate for count, rate in zip(layers, rates, strict=True))

    kinds = [key for key in gpus[0].flops if all(key in gpu.flops for gpu in gpus)]
    least = min(gpus, key=lambda gpu: gpu.link)
    return Gpu(
        " + ".join(dict.fromkeys(gpu.name for gpu in gpus)), min(gpu.memory for gpu in gpus),
        mean([gpu.bandwidth for gpu in gpus]), {key: mean([gpu.flops[key] for gpu in gpus]) for key in kinds},
        least.link, least.link_name, min(gpu.capability for gpu in gpus), per_host=len(gpus) * 8,
    )  # fmt: skip
