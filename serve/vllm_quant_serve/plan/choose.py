"""From a request to a plan: every placement is looked at, illegal ones with the reason. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NoReturn

from vllm_quant_plugin.checkpoint import Checkpoint
from vllm_quant_plugin.errors import NoFeasiblePlanError, UsageError
from vllm_quant_serve.plan.context import Context, load_context
from vllm_quant_serve.plan.fit import Fit, fit_placement
from vllm_quant_serve.plan.gpus import GIB
from vllm_quant_serve.plan.storage import Placement
from vllm_quant_serve.plan.types import Candidate, Plan, PlanRequest

MIN_USEFUL_LENGTH = 2048


@dataclass(frozen=True)
class Looked:
    """One placement with what came of it."""

    place: Placement
    fit: Fit | None
    reason: str

    def candidate(self) -> Candidate:
        place, fit = self.place, self.fit
        return Candidate(
            place.tp, place.pp, place.dp, fit is not None and fit.feasible, self.reason,
            fit.weight_bytes if fit else None, fit.kv_tokens.value if fit else None,
        )  # fmt: skip


def placements(context: Context) -> Iterator[Placement]:
    """Placements in order of preference: no pipeline before any, then fewer devices."""
    request, devices = context.request, context.devices
    count = devices.count
    dp = request.data_parallel_size or 1
    tps = [request.tensor_parallel_size] if request.tensor_parallel_size else _sizes(count)
    pps = [request.pipeline_parallel_size] if request.pipeline_parallel_size else _sizes(count)
    found = [
        Placement(tp, pp, dp, bool(request.enable_expert_parallel))
        for tp in tps
        for pp in pps
        if tp * pp * dp <= count or request.tensor_parallel_size or request.pipeline_parallel_size
    ]
    found.sort(key=lambda p: (p.pp > 1, p.devices, p.pp))
    yield from found


def _sizes(count: int) -> list[int]:
    """1 to 16, then what large installations use."""
    return [n for n in range(1, count + 1) if n <= 16 or n % 8 == 0][:64]


def look(context: Context, place: Placement) -> Looked:
    """Whether a placement is legal and fits, with the reason in words."""
    devices = context.devices
    label = f"TP {place.tp}" + (f" x PP {place.pp}" if place.pp > 1 else "")
    if place.devices > devices.count:
        return Looked(place, None, f"{label} needs {place.devices} devices, there are {devices.count}")
    reasons = list(context.weights.refusals(place))
    if reasons:
        more = f" (and {len(reasons) - 1} more)" if reasons[1:] else ""
        return Looked(place, None, f"{label}: {reasons[0]}{more}")
    fit = fit_placement(context, place)
    return Looked(place, fit, fit.reason)


def choose_plan(request: PlanRequest, checkpoint: Checkpoint | None = None) -> Plan:
    """See ``api.make_plan``."""
    check_request(request)
    context = load_context(request, checkpoint)
    looked: list[Looked] = []
    best: Looked | None = None
    for place in placements(context):
        if best is not None and place.pp > 1:
            continue  # pipelines only where tensor parallelism alone does not do
        one = look(context, place)
        looked.append(one)
        if one.fit is not None and one.fit.feasible and best is None:
            best = one
    if best is None and request.max_model_len is None:
        best = _shorten(context, looked)
    if best is None:
        refuse(context, looked)
    return to_plan(context, best, looked)


def _shorten(context: Context, looked: list[Looked]) -> Looked | None:
    """Without a length from the user: the placement that holds the longest context, if that is of use."""
    fits = [one for one in looked if one.fit is not None and one.fit.longest >= min(MIN_USEFUL_LENGTH, context.length)]
    if not fits:
        return None
    chosen = max(fits, key=lambda one: (one.fit.longest if one.fit else 0, -one.place.devices))
    assert chosen.fit is not None
    length = _round_length(chosen.fit.longest)
    shorter = fit_placement(replace(context, length=length, shortened=True), chosen.place)
    return Looked(chosen.place, shorter, shorter.reason) if shorter.feasible else None


def _round_length(length: int) -> int:
    """Down to a whole number of KiB of tokens, where it is long enough for that."""
    return length // 1024 * 1024 if length >= 2048 else length


def check_request(request: PlanRequest) -> None:
    """UsageError for values that no device can make sense of."""
    for name in ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "max_model_len", "concurrency",
                 "max_num_seqs", "max_num_batched_tokens", "block_size", "kv_cache_memory", "gpu_count"):  # fmt: skip
        value = getattr(request, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} {value} must be at least 1", "give a positive number")
    if request.gpu_memory_utilization is not None and not 0 < request.gpu_memory_utilization <= 1:
        raise UsageError(f"--gpu-memory-utilization {request.gpu_memory_utilization} is out of range", "0 < x <= 1")


def to_plan(context: Context, best: Looked, looked: list[Looked]) -> Plan:
    request, devices, fit, place = context.request, context.devices, best.fit, best.place
    assert fit is not None
    flags: dict[str, str] = {}
    if request.tensor_parallel_size is None and place.tp > 1:
        flags["--tensor-parallel-size"] = str(place.tp)
    if request.pipeline_parallel_size is None and place.pp > 1:
        flags["--pipeline-parallel-size"] = str(place.pp)
    if request.max_model_len is None and fit.length != context.arch.max_position:
        flags["--max-model-len"] = str(fit.length)
    if request.max_num_seqs is None and fit.max_num_seqs != context.default_max_num_seqs:
        flags["--max-num-seqs"] = str(fit.max_num_seqs)
    if request.gpu_memory_utilization is None and fit.utilization != context.default_utilization:
        flags["--gpu-memory-utilization"] = f"{fit.utilization:g}"
    if fit.pinned is not None and request.kv_cache_memory is None and devices.kv_space is None:
        flags["--kv-cache-memory-bytes"] = str(fit.pinned)
    if request.kv_cache_memory is not None:
        fit = replace(fit, pinned=request.kv_cache_memory)
    notes = [*context.notes, *fit.notes]
    return Plan(
        model=request.model, architecture=context.arch.architecture or context.arch.model_type,
        quantization=context.quantization, device=devices.gpu.name, device_count=devices.count,
        memory_total=devices.gpu.memory, memory_budget=fit.budget, tensor_parallel_size=place.tp,
        pipeline_parallel_size=place.pp, data_parallel_size=place.dp, max_model_len=fit.length,
        max_num_seqs=fit.max_num_seqs, gpu_memory_utilization=fit.utilization, kv_cache_dtype=context.kv.dtype,
        block_size=context.kv.block_size, weight_bytes_per_rank=fit.weight_bytes, overhead_bytes=fit.overhead,
        kv_bytes=fit.kv_bytes, kv_bytes_per_token=fit.layout.token_bytes, kv_tokens=fit.kv_tokens,
        kv_blocks=fit.blocks, max_concurrency=round(fit.layout.concurrency(fit.blocks, fit.length), 2),
        kv_cache_memory=fit.pinned, flags=flags,
        overhead_parts={name: part.value for name, part in fit.overhead_parts.items()},
        candidates=tuple(one.candidate() for one in looked), notes=tuple(dict.fromkeys(notes)),
    )  # fmt: skip


def refuse(context: Context, looked: list[Looked]) -> NoReturn:
    """NoFeasiblePlanError: what is missing on the best placement, and what would mend it."""
    legal = [one for one in looked if one.fit is not None]
    count, name = context.devices.count, context.devices.gpu.name
    on = f"{count} x {name}" if count > 1 else name
    if not legal:
        first = looked[0].reason if looked else f"{context.request.data_parallel_size} replicas need more devices"
        raise NoFeasiblePlanError(f"{context.request.model} cannot be placed on {on}: {first}", _mend_illegal(context))
    best = min(legal, key=lambda one: one.fit.missing if one.fit else math.inf)
    raise NoFeasiblePlanError(f"{context.request.model} does not fit {on}: {best.reason}", _mend(context, best))


def _mend_illegal(context: Context) -> str:
    """What to do where every placement that was asked for is illegal."""
    request = context.request
    pp, dp = request.pipeline_parallel_size or 1, request.data_parallel_size or 1
    expert = bool(request.enable_expert_parallel)
    sizes = _sizes(context.devices.count)
    legal = [tp for tp in sizes if not any(context.weights.refusals(Placement(tp, pp, dp, expert)))]
    if legal:
        return f"tensor-parallel sizes that are legal here: {', '.join(map(str, legal))}"
    return "give more devices, or leave the sizes to the planner"


def _mend(context: Context, best: Looked) -> str:
    advice: list[str] = []
    if best.fit is not None and best.fit.longest >= MIN_USEFUL_LENGTH:
        advice.append(f"--max-model-len {_round_length(best.fit.longest)}")
    if context.request.concurrency > 1 and best.fit is not None and best.fit.requests >= 1:
        advice.append(f"--concurrency {best.fit.requests}")
    if not context.devices.is_cpu:
        more = _more_devices(context)
        if more:
            advice.append(more)
    if context.kv.kv_itemsize > 1 and best.fit is not None and best.fit.weights_fit:
        advice.append("--kv-cache-dtype fp8")
    if context.scheme is None:
        advice.append("fewer bits (vllm-quant quantize -m awq)")
    return "try " + ", ".join(advice) if advice else "give more memory, a shorter --max-model-len or fewer bits"


def _more_devices(context: Context) -> str:
    """The smallest larger number of the same devices that would do."""
    for count in (2, 4, 8, 16, 32, 64):
        if count <= context.devices.count:
            continue
        wider = replace(context, devices=replace(context.devices, count=count))
        for tp in (t for t in (1, 2, 4, 8) if t <= count):
            one = look(wider, Placement(tp, count // tp))
            if one.fit is not None and one.fit.feasible:
                return f"{count} x {context.devices.gpu.name}"
    return ""


def gib(nbytes: int) -> str:
    return f"{nbytes / GIB:.2f} GiB"
