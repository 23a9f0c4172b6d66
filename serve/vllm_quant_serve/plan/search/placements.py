"""Every placement of a model on the devices, evaluated one by one, with the reason. No torch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache

from vllm_quant_plugin.architecture.placement import Placement
from vllm_quant_serve.plan.memory.weights import WeightModel
from vllm_quant_serve.plan.search.context import Context
from vllm_quant_serve.plan.search.fit import Fit, fit_placement
from vllm_quant_serve.plan.search.roofline import Roofline, Speed, Workload
from vllm_quant_serve.plan.types import Candidate

MIN_USEFUL_LENGTH = 2048


@dataclass(frozen=True)
class Evaluated:
    """One placement and its result.

    Attributes:
        meets: whether it meets the service levels.
        context: under which it was evaluated, where it differs from the request's.
        device: the kind of device, where there are several.
        flags: of ``vllm serve``, that make it fit beyond the sizes.
        env: environment variables that it needs.
        notes: human-readable remarks.
    """

    place: Placement
    fit: Fit | None
    reason: str
    speed: Speed | None = None
    meets: bool = True
    context: Context | None = None
    device: str = ""
    flags: dict[str, str] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def feasible(self) -> bool:
        return self.fit is not None and self.fit.feasible and self.meets

    @property
    def sure(self) -> bool:
        """Whether it fits at the pessimistic end of the estimates, too."""
        return self.feasible and self.fit is not None and not self.fit.tight

    def candidate(self, *, rated: bool = True) -> Candidate:
        """As shown; without speeds where the device's rates are not known (``rated``)."""
        place, fit, speed = self.place, self.fit, self.speed if rated else None
        return Candidate(
            place.tp, place.pp, place.dp, self.feasible, self.reason, fit.weight_bytes if fit else None,
            fit.kv_tokens.value if fit else None, place.expert_parallel, speed.ttft if speed else None,
            speed.tpot if speed else None, speed.tokens_per_second if speed else None, self.device,
            " ".join(f"{flag} {value}" for flag, value in self.flags.items()),
        )  # fmt: skip


def placements(context: Context) -> Iterator[Placement]:
    """Placements in order of preference: no pipeline before any, then fewer devices.

    All objectives but the fewest devices fill the devices with replicas.
    """
    request, devices = context.request, context.devices
    count = devices.count
    tps = [request.tensor_parallel_size] if request.tensor_parallel_size else sizes(count)
    stages = min(count, max(len(context.arch.layers), 1))
    pps = [request.pipeline_parallel_size] if request.pipeline_parallel_size else sizes(stages)
    found = []
    for tp in tps:
        for pp in pps:
            fill = request.objective in ("throughput", "cost") and not devices.is_cpu
            dp = request.data_parallel_size or (max(count // (tp * pp), 1) if fill else 1)
            asked = request.tensor_parallel_size or request.pipeline_parallel_size
            if tp * pp * dp <= count or asked:
                found.append(Placement(tp, pp, dp, bool(request.enable_expert_parallel)))
    found.sort(key=lambda p: (p.pp > 1, p.devices, p.pp, p.tp))
    yield from found


def sizes(count: int) -> list[int]:
    """1 to 16, then what large installations use."""
    return [*range(1, min(count, 16) + 1), *range(24, min(count, 400) + 1, 8)]


def label(place: Placement) -> str:
    """``TP 4 x PP 2 x DP 2, experts distributed``."""
    text = f"TP {place.tp}" + (f" x PP {place.pp}" if place.pp > 1 else "")
    text += f" x DP {place.dp}" if place.dp > 1 else ""
    return text + (", experts distributed" if place.expert_parallel else "")


@lru_cache(maxsize=4096)
def refusals(weights: WeightModel, place: Placement) -> tuple[str, ...]:
    """Why a placement is illegal: all reasons or, for the many large sizes, the first."""
    return tuple(itertools.islice(weights.refusals(place), None if place.tp <= 16 else 1))


def evaluate(context: Context, place: Placement) -> Evaluated:
    """Whether a placement is legal, fits and meets the service levels, and why not."""
    devices = context.devices
    if place.devices > devices.count:
        return Evaluated(place, None, f"{label(place)} needs {place.devices} devices, there are {devices.count}")
    per_host = devices.gpu.per_host
    if place.tp > per_host and not devices.is_cpu and not context.request.tensor_parallel_size:
        text = (
            f"would cross hosts of {per_host} GPUs, whose link is too slow for tensor parallelism; pipeline across them"
        )
        return Evaluated(place, None, f"{label(place)}: {text}")
    thin = _thin(context, place)
    if thin:
        return Evaluated(place, None, f"{label(place)}: {thin}")
    reasons = refusals(context.weights, place)
    if reasons:
        more = f" (and {len(reasons) - 1} more)" if reasons[1:] else ""
        return Evaluated(place, None, f"{label(place)}: {reasons[0]}{more}")
    context = context.for_ranks(place.tp * place.pp)
    return with_speed(context, place, fit_placement(context, place))


def _thin(context: Context, place: Placement) -> str:
    """Why a pipeline over hosts with little tensor parallelism in each is left out: its latency is high."""
    request, per_host = context.request, context.devices.gpu.per_host
    asked = request.tensor_parallel_size or request.pipeline_parallel_size
    if asked or context.devices.is_cpu or place.tp * place.pp <= per_host or 2 * place.tp >= per_host:
        return ""
    wider = [tp for tp in sizes(per_host) if tp > place.tp and not refusals(context.weights, Placement(tp))]
    return f"over several hosts wider tensor parallelism has a lower latency: TP {wider[-1]}" if wider else ""


def with_speed(context: Context, place: Placement, fit: Fit) -> Evaluated:
    """A fit with its speed, and whether that meets the service levels.

    With a limit on the time per output token, as many sequences run at once as keep it.
    """
    if not fit.feasible:
        return Evaluated(place, fit, fit.reason)
    request, load = context.request, workload(context)
    per_request = fit.layout.blocks_per_request(min(load.prompt + load.output, fit.length))
    held = min(max(fit.blocks - 1, 1) // per_request if per_request else fit.max_num_seqs, fit.max_num_seqs)
    line = Roofline(context, place)
    if request.slo_tpot is not None and request.max_num_seqs is None:
        most = line.largest_batch(load, held * place.dp, request.slo_tpot) // place.dp
        if request.concurrency <= most * place.dp and most < held:
            held = most
            note = f"--max-num-seqs {most} keeps the time per output token (estimated)"
            fit = replace(fit, max_num_seqs=most, notes=(*fit.notes, note))
    speed = line.speed(load, held)
    for name, limit, value in (
        ("first token", request.slo_ttft, speed.ttft),
        ("output token", request.slo_tpot, speed.tpot),
    ):
        if limit is not None and value > limit:
            text = f"{label(place)}: about {value * 1e3:.0f} ms per {name}, more than {limit * 1e3:.0f} ms"
            return Evaluated(place, fit, text, speed, meets=False)
    return Evaluated(place, fit, fit.reason, speed)


def workload(context: Context) -> Workload:
    """The typical request: as given, else up to 1024 tokens in and 256 out within the longest request."""
    request = context.request
    output = request.output_tokens or min(256, max(context.length // 4, 1))
    prompt = request.prompt_tokens or max(min(1024, context.length - output), 1)
    return Workload(prompt, output, request.concurrency)


def evaluate_all(context: Context) -> list[Evaluated]:
    """Every placement worth evaluating; whole experts per rank where cutting them is illegal."""
    evaluated: list[Evaluated] = []
    enough = False
    found = list(placements(context))
    most = {place.tp: place for place in sorted(found, key=lambda place: place.pp)}
    hopeless: set[int] = set()
    for place in found:
        if place.pp > 1 and (enough or place.tp in hopeless):
            continue  # pipelines only where tensor parallelism alone does not do
        if place.pp > 1 and context.request.pipeline_parallel_size is None and _cut_wrongly(context, place):
            continue  # the reason is that of the placement without a pipeline
        last = most.pop(place.tp) if place.pp > 1 and place.tp in most else place
        if last is not place:
            # A rank of fewer stages holds no less: what does not fit the most of them does not fit fewer.
            one = evaluate(context, last)
            if one.fit is not None and one.fit.missing:
                hopeless.add(place.tp)
                evaluated.append(one)
                continue
        one = evaluate(context, place)
        evaluated.append(one)
        spread = replace(place, expert_parallel=True)
        if one.fit is None and place.devices <= context.devices.count and _may_distribute(context, place, spread):
            one = evaluate(context, spread)
            evaluated.append(one)
        enough = enough or one.sure
        if not one.meets:
            hopeless.add(place.tp)  # further stages hand over more, and make no token faster
    return evaluated


def _may_distribute(context: Context, place: Placement, spread: Placement) -> bool:
    """Whether distributing whole experts makes an illegal placement legal, and the user left that open."""
    if not context.arch.experts or place.devices == 1 or place.expert_parallel:
        return False
    if context.request.enable_expert_parallel is not None:
        return False
    return not refusals(context.weights, spread)


def _cut_wrongly(context: Context, place: Placement) -> bool:
    """Whether the tensor-parallel size alone makes a pipeline illegal, also with whole experts per rank."""
    flat = replace(place, pp=1)
    if not refusals(context.weights, flat):
        return False
    return not _may_distribute(context, place, replace(flat, expert_parallel=True))


def round_length(length: int) -> int:
    """Down to a whole number of KiB of tokens, where it is long enough for that."""
    return length // 1024 * 1024 if length >= 2048 else length
