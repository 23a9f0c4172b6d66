"""Whether one legal placement fits, and with how many KV tokens. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from vllm_quant_serve.plan.context import Context
from vllm_quant_serve.plan.gpus import GIB
from vllm_quant_serve.plan.kv import KvLayout, kv_layout
from vllm_quant_serve.plan.ledger import narrowed
from vllm_quant_serve.plan.overhead import add, cpu_overhead, gpu_overhead
from vllm_quant_serve.plan.storage import Placement
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
        longest: the longest single request that fits.
        tight: it fits by the estimates, but not at the pessimistic end of their interval.
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
    requests: int
    weights_fit: bool
    tight: bool
    notes: tuple[str, ...] = field(default=())


def _budget(context: Context) -> tuple[int, float, list[str]]:
    """Bytes that vLLM may use of a device, the utilization that gives them, and remarks."""
    request, devices = context.request, context.devices
    total, free = devices.gpu.memory, devices.free
    if devices.is_cpu:
        utilization = request.gpu_memory_utilization or context.default_utilization
        budget = math.ceil(total * utilization)
        return min(budget, max(free - CPU_RESERVE, 0)) if free is not None else budget, utilization, []
    utilization = request.gpu_memory_utilization or context.default_utilization
    notes = []
    if free is not None and math.ceil(total * utilization) > free:
        usable = math.floor(free / total * 100) / 100
        notes.append(f"other processes hold {(total - free) / GIB:.1f} GiB of the fullest GPU")
        if request.gpu_memory_utilization is None and usable > 0:
            utilization = usable
    return math.ceil(total * utilization), utilization, notes


def fit_placement(context: Context, place: Placement) -> Fit:
    """Fit the model into the devices under ``place``, which must be legal."""
    request, devices, arch = context.request, context.devices, context.arch
    budget, utilization, notes = _budget(context)
    sequences = request.max_num_seqs or max(context.default_max_num_seqs, request.concurrency)
    weights = context.weights.weights(place)
    tokens = context.max_num_batched_tokens
    if devices.is_cpu:
        parts = cpu_overhead(arch, place, tokens=tokens, sequences=min(sequences, 128), itemsize=context.itemsize,
                             version=context.version)  # fmt: skip
    else:
        parts = gpu_overhead(arch, place, tokens=tokens, sequences=sequences, itemsize=context.itemsize,
                             eager=request.enforce_eager, version=context.version)  # fmt: skip
    overhead = narrowed(add(*parts.values()), context.residuals)
    layout = kv_layout(arch.layers, place.tp, place.pp, context.kv)
    left = Interval(*(max(budget - weights.worst - cost, 0) for cost in (overhead.high, overhead.value, overhead.low)))
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
    longest = layout.longest(min(kv.value, left.value), max(context.length, arch.max_position))
    usable = max(blocks - 1, 0)
    per_request = layout.blocks_per_request(context.length)
    requests = usable // per_request if per_request else request.concurrency
    weights_fit = weights.worst + overhead.value < budget
    missing = weights.worst + overhead.value + needed - budget
    reason = ""
    if not weights_fit:
        reason = (f"{weights.worst / GIB:.2f} GiB of weights and {overhead.value / GIB:.2f} GiB of overhead per rank "
                  f"exceed the {budget / GIB:.2f} GiB of a device")  # fmt: skip
    elif fixed is not None and not _has_room(context, fixed, weights.worst):
        reason = f"{fixed / GIB:.2f} GiB of fixed KV cache do not fit beside {weights.worst / GIB:.2f} GiB of weights"
    elif layout.needed_bytes(context.length, request.concurrency) > kv.value:
        what = f"{request.concurrency} request{'s' * (request.concurrency > 1)} of {context.length} tokens"
        reason = f"{what} need {needed / GIB:.2f} GiB of KV cache, {kv.value / GIB:.2f} GiB remain"
    feasible = not reason
    tight = feasible and kv.low < needed and pinned is None and fixed is None
    if feasible:
        reason = f"{tokens_of.value} KV tokens" + (", tight" if tight else "")
        if tight:
            notes.append("tight: at the pessimistic end of the interval the request does not fit")
        missing = 0
    if context.shortened:
        notes.append(f"the full context of {arch.max_position} tokens does not fit; {context.length} does")
    return Fit(
        feasible, reason, layout, context.length, sequences, utilization, budget, weights.worst, overhead, parts,
        kv, tokens_of, blocks, pinned, max(missing, 0), longest, requests, weights_fit, tight, tuple(notes),
    )  # fmt: skip


def _has_room(context: Context, fixed: int, weights: int) -> bool:
    """With a fixed cache vLLM ignores the utilization: physical memory is the limit."""
    limit = context.devices.free or context.devices.gpu.memory
    return fixed + weights <= limit * 0.97
