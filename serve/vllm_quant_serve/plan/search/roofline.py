"""How fast a placement can be: a roofline over weights, KV cache, FLOPs and all-reduce bytes. No torch.

A decode step of B sequences reads every weight that is touched once and the cache of every sequence;
a prefill is bound by FLOPs. The model: Williams et al., "Roofline" (CACM 2009), per layer type, with
the all-reduce cost of Thakur et al. (ring: 2 (n-1)/n of the bytes over each link, plus a latency per
step). It ranks placements; it is an estimate, not a measurement, and is labelled as such wherever it is shown.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import dataclass

from vllm_quant_plugin.architecture.arch import Cache, Parameter
from vllm_quant_plugin.architecture.placement import Placement
from vllm_quant_serve.plan.devices.gpus import Gpu
from vllm_quant_serve.plan.memory.weights import WeightModel
from vllm_quant_serve.plan.search.context import Context

# Shares of the peak that good kernels reach: STREAM-like copies reach 0.8 to 0.9 of the bandwidth, large
# GEMMs 0.5 to 0.7 of dense FLOPs (vendors' GEMM benchmarks); the middle is taken.
BANDWIDTH_SHARE = 0.8
FLOPS_SHARE = 0.55
# Launching one step: scheduler, graph replay, sampling (vLLM's own step traces show 1 to 3 ms with CUDA graphs).
STEP_SECONDS = 0.0015
EAGER_LAYER_SECONDS = 0.00015
# One all-reduce besides its bytes: NVLink one-shot kernels take about 10 us, PCIe through NCCL about 30 us.
NVLINK_SECONDS = 10e-6
PCIE_SECONDS = 30e-6
# Chunks of a prompt that are computed one by one.
MOST_CHUNKS = 64


@dataclass(frozen=True)
class Workload:
    """Requests of ``prompt`` tokens that make ``output`` tokens, ``concurrency`` at once."""

    prompt: int
    output: int
    concurrency: int


@dataclass(frozen=True)
class Speed:
    """Estimates for one placement.

    Attributes:
        ttft: seconds from a request to its first token, without queueing.
        tpot: seconds per output token at the workload's concurrency.
        tokens_per_second: output tokens of all replicas with as many requests as the cache holds.
        batch: requests per replica at which that is reached.
    """

    ttft: float
    tpot: float
    tokens_per_second: float
    tokens_per_second_per_device: float
    batch: int

    def cost_per_million(self, price: float) -> float:
        """Currency per million output tokens at ``price`` per device-hour."""
        rate = self.tokens_per_second_per_device
        return price / 3600 / rate * 1e6 if rate else math.inf


def compute_dtype(gpu: Gpu, weights: WeightModel) -> str:
    """The key of ``Gpu.flops`` at which most of the GEMMs' multiplications run.

    8 bits only where activations are quantized and the GPU can. Modules may differ in their schemes.
    """
    found: Counter[str] = Counter()
    for parameter in weights.arch.parameters():
        if parameter.linear:
            scheme = weights.scheme_of(parameter.module)
            eight = scheme is not None and scheme.activation is not None and scheme.activation.bits == 8
            kind = ("int8" if scheme.is_int else "fp8") if scheme is not None and eight else "bf16"
            found[kind if kind in gpu.flops else "bf16"] += math.prod(parameter.shape) * parameter.count
    return max(found, key=found.__getitem__, default="bf16")


class Roofline:
    """Times of one placement.

    Args:
        context: model, devices and settings.
        place: a legal placement.
    """

    def __init__(self, context: Context, place: Placement) -> None:
        self.context, self.place = context, place
        arch, weights = context.arch, context.weights
        self.dense_bytes = self.expert_bytes = 0.0
        self.dense_elements = self.expert_elements = 0.0
        for parameter in arch.parameters():
            embedding = parameter.role == "vocab" and not parameter.linear
            if parameter.derived or (embedding and parameter not in arch.shared):
                continue  # a lookup reads one row
            nbytes, elements = weights.bytes_of(parameter, place), _elements(parameter)
            if parameter.role.startswith("expert"):
                self.expert_bytes += nbytes
                self.expert_elements += elements
            else:
                self.dense_bytes += nbytes
                self.dense_elements += elements
        gpu = context.devices.gpu
        self.bandwidth = gpu.bandwidth * BANDWIDTH_SHARE
        self.flops = gpu.flops[compute_dtype(gpu, context.weights)] * FLOPS_SHARE
        self.layers = len(arch.layers)

    def experts_touched(self, tokens: int) -> float:
        """Share of the experts that ``tokens`` tokens reach under even routing: 1 - (1 - k/E)^n."""
        arch = self.context.arch
        if not arch.experts:
            return 0.0
        return 1 - (1 - min(arch.experts_per_token / arch.experts, 1.0)) ** tokens

    def _cache_bytes(self, cache: Cache, length: int) -> float:
        tp, kv = self.place.tp, self.context.kv
        if cache.kind == "mamba":
            return 2.0 * sum(state.elements(tp) * kv.state_itemsize for state in cache.states)
        span = min(length, cache.window) if cache.kind in ("sliding", "chunked") else length
        heads = 1 if cache.kind == "mla" else max(1, cache.kv_heads // tp)
        return float(span * heads * (cache.head_dim + cache.head_dim_v) * kv.kv_itemsize)

    def _attention_flops(self, tokens: int, length: int) -> float:
        arch, total = self.context.arch, 0.0
        for cache in arch.caches:
            if cache.kind == "mamba":
                continue
            span = min(length, cache.window) if cache.kind in ("sliding", "chunked") else length
            total += 4.0 * tokens * span * arch.heads * max(cache.head_dim, arch.head_dim)
        return total / self.place.tp

    def _reduce_seconds(self, tokens: int) -> float:
        """Two all-reduces per layer over the tensor-parallel ranks, and a hand-over per pipeline stage."""
        gpu, place, arch = self.context.devices.gpu, self.place, self.context.arch
        nbytes = tokens * arch.hidden * self.context.itemsize
        seconds = 0.0
        if place.tp > 1:
            latency = NVLINK_SECONDS if "NVLink" in gpu.link_name else PCIE_SECONDS
            link = gpu.link if place.tp <= gpu.per_host else min(gpu.link, 25e9)
            seconds += 2 * self.layers * (latency + 2 * (place.tp - 1) / place.tp * nbytes / link)
        return seconds + (place.pp - 1) * (PCIE_SECONDS + nbytes / gpu.link)

    def _seconds(self, tokens: int, cache_bytes: float, attention: float) -> float:
        """One forward pass of ``tokens`` tokens through all stages.

        ``bytes_of`` counts one rank that holds every layer, so that the stages together take the whole sum.
        """
        touched = self.experts_touched(tokens)
        nbytes = self.dense_bytes + self.expert_bytes * touched + cache_bytes
        active = self.dense_elements
        arch = self.context.arch
        if arch.experts:
            active += self.expert_elements * arch.experts_per_token / arch.experts
        flops = 2.0 * tokens * active / self.place.tp + attention
        launch = STEP_SECONDS
        if self.context.request.enforce_eager:
            launch += EAGER_LAYER_SECONDS * self.layers
        return max(nbytes / self.bandwidth, flops / self.flops) + self._reduce_seconds(tokens) + launch

    def decode(self, batch: int, length: int) -> float:
        """Seconds of one step that makes one token for each of ``batch`` requests of ``length`` tokens."""
        cache = batch * sum(self._cache_bytes(c, length) for c in self.context.arch.caches)
        return self._seconds(batch, cache, self._attention_flops(batch, length))

    def prefill(self, tokens: int) -> float:
        """Seconds to read a prompt of ``tokens`` tokens, in chunks of max_num_batched_tokens.

        A chunk's time grows evenly with what was read before, so of many chunks the middle one of each run stands for
        its run.
        """
        chunk = self.context.max_num_batched_tokens
        chunks, rest = divmod(tokens, chunk)
        runs = min(chunks, MOST_CHUNKS)
        edges = [chunks * i // runs for i in range(runs + 1)] if runs else [0]
        seconds = sum(
            (end - start) * self._chunk((start + end - 1) * chunk // 2, chunk)
            for start, end in itertools.pairwise(edges)
        )
        return seconds + (self._chunk(chunks * chunk, rest) if rest else 0.0)

    def _chunk(self, done: int, tokens: int) -> float:
        """Seconds for ``tokens`` tokens of a prompt after ``done`` others."""
        cache = sum(self._cache_bytes(c, done + tokens) for c in self.context.arch.caches)
        return self._seconds(tokens, cache, self._attention_flops(tokens, done + tokens // 2))

    def largest_batch(self, load: Workload, limit: int, seconds: float) -> int:
        """The most requests of all replicas, up to ``limit``, whose output tokens take no longer; 0 when one does."""
        length, replicas = load.prompt + load.output // 2, self.place.dp
        low, high = 0, max(limit, 1)
        while low < high:
            middle = (low + high + 1) // 2
            in_time = self.decode(max(1, math.ceil(middle / replicas)), length) <= seconds
            low, high = (middle, high) if in_time else (low, middle - 1)
        return low

    def speed(self, load: Workload, held: int) -> Speed:
        """Estimates under ``load``; ``held`` requests of prompt + output tokens fit the cache of one replica."""
        length = load.prompt + load.output // 2
        replicas = self.place.dp
        batch = max(1, math.ceil(load.concurrency / replicas))
        ttft = self.prefill(load.prompt)
        tpot = self.decode(batch, length)
        full = max(1, held)
        per_request = ttft + load.output * self.decode(full, length) / full
        # Stages work on different requests at once.
        overlap = max(self.place.stages(self.layers)) / self.layers * self.place.pp
        rate = replicas * load.output / per_request * (self.place.pp / overlap if self.place.pp > 1 else 1.0)
        return Speed(ttft, tpot, rate, rate / self.place.devices, full)


def _elements(parameter: Parameter) -> float:
    """Weights that take part in a GEMM, of the whole model."""
    return float(parameter.count * math.prod(parameter.shape)) if len(parameter.shape) == 2 else 0.0
