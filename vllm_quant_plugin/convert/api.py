"""``convert_model``: the same weights in another format."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_quant_plugin.checkpoint import Checkpoint, TensorInfo, read_checkpoint, write_json
from vllm_quant_plugin.console import Progress, no_progress
from vllm_quant_plugin.convert.target import TARGETS, Target, target_scheme
from vllm_quant_plugin.errors import CheckpointError, OutputError, UsageError
from vllm_quant_plugin.hub import resolve_model
from vllm_quant_plugin.inspect import stored_scheme
from vllm_quant_plugin.quant_config import parse_quantization_config
from vllm_quant_plugin.quantize.io.config_writer import quantization_config
from vllm_quant_plugin.quantize.io.output import OutputFolder, copy_auxiliary_files, free_disk
from vllm_quant_plugin.quantize.io.report import describe_source, hash_tensor_files, versions
from vllm_quant_plugin.quantize.modules import kept_modules
from vllm_quant_plugin.scheme import ModelScheme, Scheme

if TYPE_CHECKING:
    import torch

    from vllm_quant_kernels.canonical import CanonicalWeight

RECORD_NAME = "conversion.json"
# Of static activations: carried over as they are.
_CARRIED = ("input_scale", "input_zero_point")


@dataclass
class ConvertReport:
    """The result of a conversion, and what ``conversion.json`` holds.

    Attributes:
        modules: number of modules converted.
        bytes_before, bytes_after: of all tensors.
        source: sha256 of the input's files.
        files: sha256 of every tensor file written.
    """

    model: str
    output: str
    method_before: str
    method_after: str
    modules: int
    bytes_before: int
    bytes_after: int = 0
    seconds: float = 0.0
    source: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def _plan(checkpoint: Checkpoint, target: Target) -> tuple[ModelScheme, dict[str, tuple[Scheme, Scheme]]]:
    """The model's schemes, and module -> (scheme now, scheme after)."""
    config = checkpoint.quantization_config
    if not config:
        raise CheckpointError(f"{checkpoint.path}: not quantized", "quantize it with `vllm-quant quantize`")
    model = parse_quantization_config(config)
    if model.method == target:
        raise UsageError(f"{checkpoint.path}: is {target} already", "there is nothing to convert")
    if model.kv_cache and target != "compressed-tensors":
        raise UsageError(f"{checkpoint.path}: has KV-cache scales, which {target} does not know", "keep it as it is")
    plan: dict[str, tuple[Scheme, Scheme]] = {}
    for name, tensors in checkpoint.modules():
        scheme = stored_scheme(name, tensors, model)
        if scheme is not None:
            plan[name] = scheme, target_scheme(name, scheme, target)
    if not plan:
        raise CheckpointError(f"{checkpoint.path}: no quantized module", "config.json and weights do not agree")
    after = {scheme for _, scheme in plan.values()}
    if target == "awq" and len(after) > 1:
        listed = ", ".join(sorted(s.describe() for s in after))
        raise UsageError(f"AWQ's layout has one scheme for all modules, this model has {listed}", "--to gptq has more")
    if target == "gptq" and len({s.zero_offset for s in after}) > 1:
        raise UsageError(
            "symmetric and asymmetric modules cannot share a GPTQ checkpoint", "--to compressed-tensors holds both"
        )
    if target == "awq" and "lm_head" in plan:
        raise UsageError("lm_head is quantized, which AWQ's layout does not know", "--to gptq or compressed-tensors")
    return model, plan


def _config(
    checkpoint: Checkpoint, model: ModelScheme, plan: Mapping[str, tuple[Scheme, Scheme]], target: Target
) -> dict[str, Any]:
    schemes = {name: after for name, (_, after) in plan.items()}
    counts: dict[Scheme, int] = {}
    for scheme in schemes.values():
        counts[scheme] = counts.get(scheme, 0) + 1
    common = max(counts, key=lambda s: counts[s])
    kept = [name for name in kept_modules(checkpoint, schemes) if name not in schemes]
    found = quantization_config(common, kept, schemes if len(counts) > 1 else None, kv_cache=bool(model.kv_cache))
    if target == "gptq":
        found["checkpoint_format"] = "gptq" if common.zero_offset else "gptq_v2"
        found["lm_head"] = "lm_head" in schemes
    return found


def _shape(checkpoint: Checkpoint, name: str, tensors: Mapping[str, TensorInfo], scheme: Scheme) -> tuple[int, int]:
    """(out_features, in_features) of a quantized module."""
    from vllm_quant_plugin.inspect import module_shape
    from vllm_quant_plugin.quantize.io.shards import read_tensor

    if "weight_shape" in tensors:
        n, k = read_tensor(checkpoint, f"{name}.weight_shape").tolist()
        return int(n), int(k)
    return module_shape(tensors, scheme)


def _same(again: CanonicalWeight, weight: CanonicalWeight) -> bool:
    import torch

    return torch.equal(again.dequantize(torch.float64), weight.dequantize(torch.float64))


def _explicit(weight: CanonicalWeight, scheme: Scheme) -> CanonicalWeight:
    """The same weight with the zero points and the permutation that ``scheme`` stores even where they say nothing."""
    import torch

    from vllm_quant_kernels.canonical import CanonicalWeight

    zeros, g_idx = weight.zeros, weight.g_idx
    if not scheme.symmetric and zeros is None:
        zeros = torch.full(weight.scales.shape, 1 << (weight.bits - 1), dtype=torch.uint8)
    if scheme.act_order and g_idx is None:
        g_idx = weight.group_index().int()
    return CanonicalWeight(weight.codes, weight.scales, weight.bits, weight.group_size, zeros, weight.kind, g_idx)


def _convert_module(
    checkpoint: Checkpoint, name: str, before: Scheme, after: Scheme, tensors: Mapping[str, TensorInfo]
) -> dict[str, torch.Tensor]:
    """A module's tensors in its new format.

    Raises:
        UsageError: the new format cannot hold the weight exactly.
    """
    from vllm_quant_plugin.formats import get_format
    from vllm_quant_plugin.quantize.io.shards import read_tensor

    n, k = _shape(checkpoint, name, tensors, before)
    source, target = get_format(before), get_format(after)
    leaves = {leaf for leaf in source.specs(before, n, k) if leaf in tensors}
    held = {leaf: read_tensor(checkpoint, f"{name}.{leaf}") for leaf in leaves}
    source.validate(name, held, before, n, k)
    weight = source.unpack(held, before, n, k).validate()
    if weight.g_idx is not None and not after.act_order:
        raise UsageError(f"{name} has a g_idx that its config does not announce", "set desc_act in config.json")
    if after.symmetric and weight.zeros is not None:
        raise UsageError(f"{name} has zero points though its config says symmetric", "fix config.json")
    made = target.pack(_explicit(weight, after), after)
    target.validate(name, made, after, n, k)
    if not _same(target.unpack(made, after, n, k), weight):
        dtype = str(weight.scales.dtype).removeprefix("torch.")
        raise UsageError(
            f"{name}: its {dtype} scales cannot be kept exactly in {after.storage}",
            "nothing was written; quantize the original model into the format instead",
        )
    return {**made, **{leaf: held[leaf] for leaf in _CARRIED if leaf in held}}


def convert_model(
    model: str | Path, output: str | Path, to: str, *, overwrite: bool = False, progress: Progress = no_progress
) -> ConvertReport:
    """Write a quantized model in another format, every weight the same number.

    Everything that the config decides is checked before the first weight is read; each module is read back and
    compared. The output appears under its name only when it is complete.

    Args:
        model: folder with a quantized checkpoint, or hub id.
        output: folder to create.
        to: ``gptq``, ``awq`` or ``compressed-tensors``.
        overwrite: replace ``output`` when it is there.
        progress: called with (module, done, total).

    Raises:
        UsageError: the format cannot hold this model without loss; the message says why.
        CheckpointError: the input is missing, damaged, unquantized or of a kind that is not read.
        OutputError: the output exists or cannot be written.
    """
    from vllm_quant_plugin.quantize.io.shards import ModelWriter, read_tensor

    started = time.monotonic()
    if to not in TARGETS:
        raise UsageError(f"format {to!r} is not known", f"--to is one of {', '.join(TARGETS)}")
    target: Target = to
    folder = resolve_model(model)
    checkpoint = read_checkpoint(folder)
    scheme, plan = _plan(checkpoint, target)
    place = OutputFolder(Path(output), overwrite=overwrite, source=folder)
    # A shard's spool lives beside the shard while that is written.
    if free_disk(place.final.parent) < 2 * checkpoint.nbytes:
        raise OutputError(f"{output}: less than {2 * checkpoint.nbytes / 1e9:.1f} GB of disk are free", "free some")
    report = ConvertReport(
        str(model), str(output), scheme.method, to, len(plan), checkpoint.nbytes,
        source=describe_source(checkpoint), versions=versions(),
    )  # fmt: skip
    with place as work:
        writer, done = ModelWriter(work, checkpoint), 0
        for name, tensors in checkpoint.modules():
            leaves = set(tensors)
            if name in plan:
                before, after = plan[name]
                try:
                    made = _convert_module(checkpoint, name, before, after, tensors)
                except ValueError as err:
                    if isinstance(err, CheckpointError):
                        raise
                    raise CheckpointError(f"{name}: {err}", "the checkpoint is damaged") from None
                writer.add_module(name, made)
                from vllm_quant_plugin.formats import get_format

                n, k = _shape(checkpoint, name, tensors, before)
                leaves -= set(get_format(before).specs(before, n, k))
                done += 1
                progress(name, done, len(plan))
            for leaf in sorted(leaves):
                stored = f"{name}.{leaf}" if name else leaf
                writer.add(stored, read_tensor(checkpoint, stored))
        writer.close()
        config = {k: v for k, v in checkpoint.config.items() if k not in ("quantization_config", "compression_config")}
        config["quantization_config"] = _config(checkpoint, scheme, plan, target)
        write_json(work / "config.json", config)
        copy_auxiliary_files(folder, work)
        report.bytes_after = read_checkpoint(work).nbytes
        report.files = hash_tensor_files(work)
        report.seconds = round(time.monotonic() - started, 2)
        write_json(work / RECORD_NAME, report.to_json())
    return report
