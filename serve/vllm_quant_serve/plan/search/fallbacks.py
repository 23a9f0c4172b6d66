"""Settings that are changed so that a model fits after all, the least costly first. No torch.

What the user set is never changed. Fewer sequences at once cost throughput only; a higher share of the memory costs
safety; an 8-bit cache costs some quality.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from vllm_quant_serve.plan.search.context import Context

FEWER_SEQUENCES = 64
UTILIZATION = 0.95


@dataclass(frozen=True)
class MemoryFallback:
    """Flags, and the context under them."""

    flags: dict[str, str]
    context: Context

    @property
    def notes(self) -> tuple[str, ...]:
        if not self.flags:
            return ()
        note = f"fits only with {' '.join(f'{flag} {value}' for flag, value in self.flags.items())}"
        if "--kv-cache-dtype" not in self.flags:
            return (note,)
        return note, "an fp8 cache costs some quality: measure it (vllm-quant eval), or use more memory"


def memory_fallbacks(context: Context) -> Iterator[MemoryFallback]:
    """Each step keeps those before it."""
    request, devices = context.request, context.devices
    flags: dict[str, str] = {}
    fewer = max(FEWER_SEQUENCES, request.concurrency)
    if request.max_num_seqs is None and context.default_max_num_seqs > fewer:
        flags["--max-num-seqs"] = str(fewer)
        context = replace(context, default_max_num_seqs=fewer)
        yield MemoryFallback(dict(flags), context)
    if devices.is_cpu:
        return
    if request.gpu_memory_utilization is None and devices.free is None:
        flags["--gpu-memory-utilization"] = f"{UTILIZATION:g}"
        context = replace(context, default_utilization=UTILIZATION)
        yield MemoryFallback(dict(flags), context)
    if request.kv_cache_dtype is None and context.kv.dtype == "auto" and _has_fp8_cache(context):
        flags["--kv-cache-dtype"] = "fp8"
        context = replace(context, kv=replace(context.kv, dtype="fp8"))
        yield MemoryFallback(dict(flags), context)


def _has_fp8_cache(context: Context) -> bool:
    """Whether vLLM has an attention kernel for an fp8 cache here: CUDA from 8.9 on, with MLA from 9.0 on."""
    kinds = {cache.kind for cache in context.arch.caches}
    if not kinds & {"full", "sliding", "chunked", "mla"} or "cross" in kinds:
        return False
    return context.devices.gpu.capability >= ((9, 0) if "mla" in kinds else (8, 9))
