"""Whether one legal placement fits, and with how many KV tokens. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from vllm_quant_plugin.architecture.placement import Placement
from vllm_quant_serve.plan.devices.gpus import GIB
from vllm_quant_serve.plan.memory.kv import KvLayout
from vllm_quant_serve.plan.memory.ledger import narrowed
from vllm_quant_serve.plan.memory.overhead import add, cpu_overhead, gpu_overhead, overheads_of
from vllm_quant_serve.plan.search.context import Context
from vllm_quant_serve.plan.types import Interval

# On a CPU host the cache is sized for this many full-length requests when memory allows, not for all of memory.
CPU_REQUESTS = 8
CPU_LEAST = GIB
CPU_RESERVE = GIB // 2


@dataclass(frozen=True)
class Fit:
    """The memory of one rank under a placement.

    Attributes:
        budget: bytes vLLM may use of a device.
        kv_bytes: what remains for the KV cache (never below zero).
        pinned: KV bytes to fix by a flag, None to leave the size to vLLM.
        missing: bytes short of the request, 0 when it fits.
        longest: the longest single request that fits; ``certain`` at the pessimistic end of the estimates, too.
        tight: it fits by the estimates, but not at the pessimistic end of their interval.
        slack: bytes left at that end; below zero where it is tight.
        requests: how many requests of ``length`` fit.
    """

    feasible: bool
    reason: str
    layout: KvLayout
    length: int
    max_num_seqs: int
    utilization: float
    budget: int
    weight_bytes: int
    overhead: Interval
    overhead_parts: dict[str, Interval]
    kv_bytes: Interval
    kv_tokens: Interval
    blocks: int
    pinned: int | None
    missing: int
    longest: int
    certain: int
    requests: int
    weights_fit: bool
    tight: bool
    slack: int
    notes: tuple[str, ...] = field(default=())


def _budget(context: Context) -> tuple[int, float, list[str], str]:
    """Bytes that vLLM may use of a device, the utilization that gives them, remarks, and why it would refuse."""
    request, devices = context.request, context.devices
    total, free = devices.gpu.memory, devices.free
    utilization = request.gpu_memory_utilization or context.default_utilization
    if devices.is_cpu:
        budget = math.ceil(total * utilization)
        return min(budget, max(free - CPU_RESERVE, 0)) if free is not None else budget, utilization, [], ""
    notes = []
    # vLLM compares with what is free once its own CUDA context is there.
    own = overheads_of(context.version, devices.gpu.capability).context
    if free is not None and math.ceil(total * utilization) > free - own.value:
        usable = math.floor((free - own.value) / total * 100) / 100
        if total - free > own.high:
            notes.append(f"other processes hold {(total - free) / GIB:.1f} GiB of the fullest GPU")
        if request.gpu_memory_utilization is None and usable > 0:
            utilization = usable
    limit = (free if free is not None else total) - own.low
    if request.gpu_memory_utilization is None and total * utilization > limit > 0:
        utilization = math.floor(limit / total * 100) / 100  # on a small GPU the context takes a larger share
    budget = math.ceil(total * utilization)
    refusal = ""
    if budget > limit:
        refusal = (f"--gpu-memory-utilization {utilization:g} asks for {budget / GIB:.2f} GiB, at most "
                   f"{max(limit, 0) / GIB:.2f} GiB are free beside the CUDA context")  # fmt: skip
    elif free is None and budget > total - own.high:
        notes.append(f"--gpu-memory-utilization {utilization:g} leaves little for the CUDA context: vLLM may refuse it")
    return budget, utilization, notes, refusal


def fit_placement(context: Context, place: Placement) -> Fit:
    """Fit the model into identical devices under ``place``, which must be legal: the fullest pipeline stage decides."""
    return worst_of([fit_stage(context, place, stage) for stage in _kinds_of_stages(context, place)])


def worst_of(fits: Sequence[Fit]) -> Fit:
    """The stage that does not fit or, where all do, the one with the fewest blocks: vLLM takes the minimum of all."""
    return min(fits, key=lambda fit: (fit.feasible, -fit.missing, fit.blocks))


def _kinds_of_stages(context: Context, place: Placement) -> list[int]:
    """One stage of each kind: those of equal weights and equal cache differ in nothing."""
    if place.pp == 1:
        return [0]
    weights, layouts = context.weights.weights(place).stages, context.layouts(place)
    counts = place.stages(len(context.arch.layers))
    kinds = {(w, layout.block_bytes, n): i for i, (w, layout, n) in
             enumerate(zip(weights, layouts, counts, strict=True))}  # fmt: skip
    return list(kinds.values())


def fit_stage(context: Context, place: Placement, stage: int) -> Fit:
    """Fit the ranks of one pipeline stage into the context's devices."""
    request, devices, arch = context.request, context.devices, context.arch
    budget, utilization, notes, refusal = _budget(context)
    sequences = request.max_num_seqs or max(context.default_max_num_seqs, request.concurrency)
    weights = context.weights.weights(place).stages[stage]
    tokens = context.max_num_batched_tokens
    if devices.is_cpu:
        parts = cpu_overhead(arch, place, tokens=tokens, sequences=min(sequences, 128), itemsize=context.itemsize,
                             version=context.version)  # fmt: skip
    else:
        parts = gpu_overhead(arch, place, tokens=tokens, sequences=sequences, itemsize=context.itemsize,
                             eager=request.enforce_eager, version=context.version, capability=devices.gpu.capability,
                             layers=place.stages(len(arch.layers))[stage])  # fmt: skip
    overhead = narrowed(add(*parts.values()), context.residuals)
    layout = context.layouts(place)[stage]
    left = Interval(*(max(budget - weights - cost, 0) for cost in (overhead.high, overhead.value, overhead.low)))
    needed = layout.needed_bytes(context.length, request.concurrency)
    kv, pinned = left, None
    fixed = request.kv_cache_memory or devices.kv_space
    if fixed is not None:
        # vLLM does not profile when the size is fixed: the weights and overheads must fit beside it.
        kv, pinned = Interval(fixed, fixed, fixed), fixed if request.kv_cache_memory is None else None
    elif devices.is_cpu and left.value >= needed:
        wanted = max(layout.needed_bytes(context.length, max(CPU_REQUESTS, request.concurrency)), CPU_LEAST)
        pinned = max(min(wanted, left.low), needed)
        kv = Interval(pinned, pinned, pinned)
    blocks = layout.blocks(kv.value)
    tokens_of = Interval(*(layout.tokens(layout.blocks(n), context.length) for n in (kv.low, kv.value, kv.high)))
    limit = max(context.length, arch.max_position)
    longest, certain = (layout.longest(min(a, b), limit) for a, b in ((kv.value, left.value), (kv.low, left.low)))
    usable = max(blocks - 1, 0)
    per_request = layout.blocks_per_request(context.length)
    requests = usable // per_request if per_request else request.concurrency
    weights_fit = weights + overhead.value < budget
    missing = weights + overhead.value + needed - budget
    states = _state_limit(context, blocks)
    reason = refusal
    if reason:
        weights_fit = False
    elif not weights_fit:
        reason = (f"{weights / GIB:.2f} GiB of weights and {overhead.value / GIB:.2f} GiB of overhead exceed "
                  f"{budget / GIB:.2f} GiB per device")  # fmt: skip
    elif fixed is not None and not _has_room(context, fixed, weights):
        reason = f"{fixed / GIB:.2f} GiB of fixed KV cache do not fit beside {weights / GIB:.2f} GiB of weights"
    elif needed > kv.value:
        what = f"{request.concurrency} request{'s' * (request.concurrency > 1)} of {context.length:,} tokens"
        verb = "needs" if request.concurrency == 1 else "need"
        reason = f"{what} {verb} {needed / GIB:.2f} GiB of KV cache, {kv.value / GIB:.2f} GiB remain"
    elif request.max_num_seqs and request.max_num_seqs > states:
        reason = f"--max-num-seqs {request.max_num_seqs} exceeds the {states} state blocks: vLLM refuses it"
    feasible = not reason
    tight = feasible and kv.low < needed and pinned is None and fixed is None
    slack = budget - weights - overhead.high - needed
    if feasible:
        reason = f"{tokens_of.value:,} KV tokens" + (", tight" if tight else "")
        if tight:
            notes.append("tight: at the pessimistic end of the interval the request does not fit")
        if sequences > states:
            sequences = states
            notes.append(f"vLLM wants a state block for each of --max-num-seqs: lowered to {states}")
        missing = 0
    if context.shortened:
        more = f" ({longest:,} if the estimates hold)" if longest > context.length + 1024 else ""
        notes.append(f"the full context of {arch.max_position:,} tokens does not fit; {context.length:,} does{more}")
    return Fit(
        feasible, reason, layout, context.length, sequences, utilization, budget, weights, overhead, parts,
        kv, tokens_of, blocks, pinned, max(missing, 0), longest, certain, requests, weights_fit, tight, slack,
        tuple(notes),
    )  # fmt: skip


def _state_limit(context: Context, blocks: int) -> int:
    """Sequences that vLLM allows: with CUDA graphs, no more than blocks where layers keep recurrent states.

    Source: vllm/config/compilation.py of 0.32 (resolve_cudagraph_mode_and_sizes).
    """
    recurrent = any(cache.kind == "mamba" for cache in context.arch.caches)
    if not recurrent or context.devices.is_cpu or context.request.enforce_eager:
        return 1 << 30
    return max(blocks, 1)


def _has_room(context: Context, fixed: int, weights: int) -> bool:
    """With a fixed cache vLLM ignores the utilization: physical memory is the limit."""
    limit = context.devices.free or context.devices.gpu.memory
    return fixed + weights <= limit * 0.97
