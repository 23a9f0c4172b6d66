"""Everything about a planning problem that does not depend on the placement, resolved once. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from vllm_quant_plugin.architecture.arch import ModelArch
from vllm_quant_plugin.architecture.families.decoder import DTYPE_BYTES
from vllm_quant_plugin.architecture.placement import Placement
from vllm_quant_plugin.errors import NoFeasiblePlanError
from vllm_quant_plugin.formats import Host, get_format
from vllm_quant_plugin.formats.verdict import judge
from vllm_quant_plugin.schemes import ModelScheme
from vllm_quant_serve.plan.devices.gpus import GIB
from vllm_quant_serve.plan.devices.pool import DEFAULT_UTILIZATION, Devices
from vllm_quant_serve.plan.memory.kv import KvLayout, KvSettings, kv_layouts
from vllm_quant_serve.plan.memory.ledger import LEAST_LAUNCHES, residuals
from vllm_quant_serve.plan.memory.storage import Server
from vllm_quant_serve.plan.memory.weights import WeightModel
from vllm_quant_serve.plan.model.load import Model
from vllm_quant_serve.plan.request import PlanRequest
from vllm_quant_serve.plan.search.engine_defaults import (
    block_size,
    installed_version,
    limited_batch,
    serving_dtype,
    state_itemsize,
)


@dataclass(frozen=True)
class Context:
    """A model on devices under a request.

    Attributes:
        length: tokens of the longest request to plan for.
        quantization: human-readable, e.g. ``INT4 g128 sym (gptq)``.
        default_max_num_seqs: vLLM's default for these devices.
        residuals: actual minus planned overhead of earlier launches like this, see ``ledger``.
        dtype: of the activations; ``named_dtype`` where vLLM must be told.
        needed_flags: flags without which the checkpoint does not start as it is.
        shortened: the planner reduced the length, because the full context does not fit.
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
    needed_flags: Mapping[str, str] = field(default_factory=dict)
    residuals: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    dtype: str = "bfloat16"
    named_dtype: bool = False

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


def quantization_name(scheme: ModelScheme | None, dtype: str, online: bool) -> str:
    name = {"bfloat16": "BF16", "float16": "FP16", "float32": "FP32"}[dtype]
    if scheme is None:
        return name
    if not list(scheme.schemes()):
        return f"{name}, {(scheme.kv_cache or '16-bit').upper()} KV cache ({scheme.method})"
    return f"{scheme.describe()} ({scheme.method}{', online' if online else ''})"


def served_by_plugin(model: Model, devices: Devices, quantization: str | None) -> Server:
    """The device whose packed layout holds the weights when this plugin serves them, else "".

    By flag, or because vLLM's own methods refuse the checkpoint (``vllm_quant_plugin.formats``).
    """
    scheme = model.scheme
    if scheme is None or not all(get_format(s).readable(s) for s in scheme.schemes()):
        return ""
    device: Literal["cpu", "cuda"] = "cpu" if devices.is_cpu else "cuda"
    asked = scheme.method if model.online else quantization or ""
    claimed = not asked and judge(scheme, Host.local(device), model.parts).claimed
    return device if asked.startswith("vqp_") or asked == "int8" or claimed else ""


def needed_flags(model: Model, devices: Devices, dtype: str) -> dict[str, str]:
    """Flags of ``vllm serve`` without which the checkpoint does not start as it is.

    ``--quantization`` where a file beside config.json alone describes the quantization; ``--kv-cache-dtype`` where it
    asks for an FP8 KV cache that vLLM does not have on the host.

    Args:
        dtype: that vLLM serves in.
    """
    scheme, found = model.scheme, dict[str, str]()
    if scheme is None or model.online:
        return found
    verdict = judge(scheme, Host.local("cpu" if devices.is_cpu else "cuda"), model.parts)
    if model.side_file and scheme.method in ("awq", "gptq"):
        found["--quantization"] = scheme.method if verdict.in_tree is None else verdict.method or scheme.method
    if verdict.kv_cache_dtype:
        found["--kv-cache-dtype"] = "float16" if dtype == "float16" else verdict.kv_cache_dtype
    return found


def with_scheme(context: Context, scheme: ModelScheme | None) -> Context:
    """The same 16-bit model with its weights stored as ``scheme`` says."""
    dtype = {4: "float32", 2: "bfloat16"}[context.itemsize]
    return replace(
        context, scheme=scheme, weights=WeightModel(context.arch, scheme, context.itemsize),
        quantization=quantization_name(scheme, dtype, False),
    )  # fmt: skip


def _refuse_unserved(scheme: ModelScheme | None, weights: WeightModel) -> None:
    if scheme is not None and any(get_format(s).removed for s in scheme.schemes()):
        held = weights.weights(Placement()).worst / GIB
        raise NoFeasiblePlanError(
            f"vLLM has no {scheme.method} method any more; the weights would take {held:.2f} GiB",
            "quantize the 16-bit model with vllm-quant quantize",
        )


def load_context(request: PlanRequest, model: Model, devices: Devices) -> Context:
    """The problem of serving a model on devices under a request.

    Raises:
        UsageError: flags that make no sense.
        NoFeasiblePlanError: vLLM does not serve the quantization any more.
    """
    arch, scheme = model.arch, model.scheme
    devices = _shared_by_ranks(devices, (request.tensor_parallel_size or 1) * (request.pipeline_parallel_size or 1))
    notes = list(model.notes)
    if devices.is_cpu and not request.cpu and request.cpu_memory is None:
        notes.append("this host has no NVIDIA GPU: planned for its CPU; --gpu h100:4 plans for others")
    if devices.is_cpu and (request.slo_ttft or request.slo_tpot):
        notes.append("the speed of this CPU was not measured: the service levels rest on a server's rates")
    dtype = serving_dtype(request.dtype, arch, devices, notes)
    itemsize = DTYPE_BYTES[dtype]
    length = request.max_model_len or arch.max_position
    batched, sequences = limited_batch(request, devices, arch, length, 1)
    if length > arch.max_position:
        notes.append(f"--max-model-len {length} is beyond the model's {arch.max_position}; vLLM may refuse it")
    needed = needed_flags(model, devices, dtype)
    stored_kv = scheme.kv_cache if scheme is not None and scheme.kv_cache else "auto"
    kv_dtype = request.kv_cache_dtype or needed.get("--kv-cache-dtype", stored_kv)
    flights = 1 if devices.is_cpu else 2  # asynchronous scheduling is the default on GPUs only
    kv = KvSettings(
        dtype=kv_dtype, itemsize=itemsize, block_size=block_size(request, devices, arch), in_flight=batched * flights,
        encoder_tokens=batched, state_itemsize=state_itemsize(arch, devices, itemsize),
    )  # fmt: skip
    kv.kv_itemsize  # noqa: B018  # refuses an unknown dtype here, in one line
    version = installed_version()
    known = residuals(version, devices.gpu.name, model.architecture)
    if len(known) >= LEAST_LAUNCHES:
        launches = f"{len(known)} recorded launches of {model.architecture} on {devices.gpu.name}"
        notes.append(f"overheads narrowed by {launches}")
    weights = WeightModel(arch, scheme, itemsize, served_by_plugin(model, devices, request.quantization))
    _refuse_unserved(scheme, weights)
    return Context(
        request, devices, arch, scheme, weights, kv, length, itemsize,
        quantization_name(scheme, dtype, model.online), sequences, batched, DEFAULT_UTILIZATION, version,
        residuals=known, notes=tuple(notes), dtype=dtype,
        named_dtype=request.dtype != "auto" or dtype not in ("bfloat16", arch.dtype),
        needed_flags=needed,
    )  # fmt: skip


def _shared_by_ranks(devices: Devices, ranks: int) -> Devices:
    """A CPU host for ``ranks`` ranks: more of them than NUMA nodes share the memory."""
    if not devices.is_cpu or ranks <= devices.count:
        return devices
    share = devices.gpu.memory * devices.count // ranks
    free = devices.free * devices.count // ranks if devices.free is not None else None
    return replace(devices, gpu=replace(devices.gpu, memory=share), count=ranks, free=free)
