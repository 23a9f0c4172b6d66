"""What a run will need and give, from configuration and headers alone: sizes, memory, disk, will it load. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from vllm_quant_plugin.architecture.sharding import TP_SIZES, tp_refusals
from vllm_quant_plugin.checkpoint import Checkpoint
from vllm_quant_plugin.errors import CheckpointError, NoFeasiblePlanError, OutputError, UsageError
from vllm_quant_plugin.formats import get_format, parse_quantization_config
from vllm_quant_plugin.formats.host import DeviceType
from vllm_quant_plugin.formats.verdict import Verdict, check_output, named_parts
from vllm_quant_plugin.inspect import kernel_name
from vllm_quant_plugin.progress import in_words
from vllm_quant_plugin.quantize.estimate.cost import Duration, disk_needed, estimate_duration, memory_needed
from vllm_quant_plugin.quantize.estimate.speed import SpeedRange
from vllm_quant_plugin.quantize.io.config_writer import config_for
from vllm_quant_plugin.quantize.io.storage import KV_SCALE_BYTES, MODEL_DTYPES
from vllm_quant_plugin.quantize.modules import QuantizedLinear, layer_of
from vllm_quant_plugin.quantize.recipe import Recipe
from vllm_quant_plugin.schemes import ModelScheme
from vllm_quant_plugin.sizes import format_size


@dataclass(frozen=True)
class ModuleSize:
    """One module: (out_features, in_features) and its bytes now and after."""

    name: str
    out_features: int
    in_features: int
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True)
class Preflight:
    """The answer of ``--dry-run``.

    Attributes:
        bytes_after: of all tensors; exact.
        peak_memory_bytes: an upper estimate for the process.
        disk_bytes: needed while running, temporary files included; an upper estimate.
        tp_problems: tensor-parallel size -> why it is refused.
        stock_vllm: device -> why vLLM without this plugin does not serve it, None when it does.
        served_by: device -> who serves it with this plugin installed, and with which kernels.
        seconds: wall time on this machine as busy as it was when it was measured; None where it was not.
        notes: for the user.
    """

    recipe: str
    modules: tuple[ModuleSize, ...]
    bytes_before: int
    bytes_after: int
    bits_per_weight: float
    peak_memory_bytes: int
    disk_bytes: int
    tp_problems: dict[int, str]
    stock_vllm: dict[str, str | None]
    served_by: dict[str, str] = field(default_factory=dict)
    seconds: Duration | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def _module_sizes(modules: Sequence[QuantizedLinear]) -> tuple[ModuleSize, ...]:
    return tuple(
        ModuleSize(
            m.name, m.out_features, m.in_features, m.weight.nbytes,
            get_format(m.scheme).stored_bytes(m.scheme, m.out_features, m.in_features, MODEL_DTYPES[m.weight.dtype]),
        )
        for m in modules
    )  # fmt: skip


def _tensor_parallel_problems(
    checkpoint: Checkpoint, model: ModelScheme, verdicts: Mapping[DeviceType, Verdict]
) -> dict[int, str]:
    """Tensor-parallel size -> why whoever serves the output on one device refuses it, by the rules of ``plan``."""
    served = {verdict.claimed is not None for verdict in verdicts.values()}
    stored = parse_quantization_config(checkpoint.quantization_config) if checkpoint.quantization_config else None
    problems: dict[int, str] = {}
    for plugin in sorted(served):
        try:
            found = tp_refusals(checkpoint, stored, model, plugin=plugin)
        except (CheckpointError, NoFeasiblePlanError) as error:
            found = dict.fromkeys(TP_SIZES, error.message)
        problems = {**{tp: why for tp, why in found.items() if why}, **problems}
    return dict(sorted(problems.items()))


def plan_run(
    checkpoint: Checkpoint, modules: Sequence[QuantizedLinear], recipe: Recipe, measured: SpeedRange | None = None
) -> Preflight:
    """Work out what a run needs and gives.

    Args:
        measured: the machine's speed; without it the time is not estimated.
    """
    sizes = _module_sizes(modules)
    after = checkpoint.nbytes - sum(s.bytes_before - s.bytes_after for s in sizes)
    if recipe.kv_cache:
        after += KV_SCALE_BYTES * len({layer_of(m.name) for m in modules})
    weights = sum(s.out_features * s.in_features for s in sizes)
    model = parse_quantization_config(config_for(recipe, checkpoint, modules, "none:0"))
    parts = named_parts((m.name, m.scheme, m.out_features, m.in_features) for m in modules)
    verdicts = check_output(model, parts, "the output")
    return Preflight(
        recipe=recipe.describe(),
        modules=sizes,
        bytes_before=checkpoint.nbytes,
        bytes_after=after,
        bits_per_weight=round(8 * sum(s.bytes_after for s in sizes) / weights, 4),
        peak_memory_bytes=memory_needed(checkpoint, modules, recipe),
        disk_bytes=disk_needed(checkpoint, modules, recipe, after),
        tp_problems=_tensor_parallel_problems(checkpoint, model, verdicts),
        stock_vllm={device: verdict.in_tree for device, verdict in verdicts.items()},
        served_by={device: _who_serves(verdict, modules, device) for device, verdict in verdicts.items()},
        seconds=None if measured is None else estimate_duration(checkpoint, modules, recipe, after, measured),
    )


def _who_serves(verdict: Verdict, modules: Sequence[QuantizedLinear], device: DeviceType) -> str:
    """Who serves the output and with which kernels, as ``inspect`` will report it."""
    names = (kernel_name(m.scheme, m.out_features, m.in_features, device) for m in modules)
    kernels = ", ".join(dict.fromkeys(names))
    method = verdict.method
    if verdict.server == "nobody":
        return "nobody"
    if verdict.server == "vllm":
        return "vLLM's own kernels" + (f"; with --quantization {method}: {kernels}" if method else "")
    claimed = verdict.claimed
    return f"{claimed}: {kernels}" if claimed else f"compressed-tensors with this plugin's kernels: {kernels}"


def check_room(plan: Preflight, disk_free: int, memory: int) -> None:
    """Refuse a run that cannot end well.

    Raises:
        OutputError: not enough disk.
        UsageError: not enough memory in the whole machine.
    """
    if disk_free < plan.disk_bytes:
        raise OutputError(
            f"the run needs {format_size(plan.disk_bytes)} of disk and {format_size(disk_free)} are free",
            "free some space or give another -o",
        )
    if memory < plan.peak_memory_bytes:
        raise UsageError(
            f"the run needs up to {format_size(plan.peak_memory_bytes)} of memory,"
            f" the machine has {format_size(memory)}",
            "lower --calibration-samples or --seq-len, or use an algorithm without calibration, such as -m rtn",
        )


def summary(plan: Preflight) -> str:
    """Human-readable summary."""
    lines = [
        plan.recipe,
        f"  {len(plan.modules)} modules, {format_size(plan.bytes_before)} -> {format_size(plan.bytes_after)}"
        f" ({plan.bits_per_weight:.2f} bits per quantized weight)",
        f"  up to {format_size(plan.peak_memory_bytes)} of memory, {format_size(plan.disk_bytes)} of disk",
    ]
    if plan.seconds is not None:
        lines.append(
            f"  takes between {in_words(plan.seconds.low)} and {in_words(plan.seconds.high)} on this CPU, by its speed"
            " measured just now; longer if it gets busier"
        )
    lines += [
        f"  vLLM without this plugin on {device}: " + ("serves it" if reason is None else f"does not serve {reason}")
        for device, reason in plan.stock_vllm.items()
    ]
    lines += [f"  note: {note}" for note in plan.notes]
    lines += [f"  served on {device} by {who}" for device, who in plan.served_by.items()]
    legal = [str(tp) for tp in TP_SIZES if tp not in plan.tp_problems]
    lines.append(f"  tensor-parallel sizes: {', '.join(legal) or 'none'}")
    lines += [f"  note: not TP {tp}: {why}" for tp, why in plan.tp_problems.items()]
    return "\n".join(lines)
