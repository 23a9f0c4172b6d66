"""``convert_model``: the same weights in another format."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_quant_plugin.checkpoint import Checkpoint, TensorInfo, read_checkpoint, write_json
from vllm_quant_plugin.console import Progress, no_progress
from vllm_quant_plugin.errors import CheckpointError, OutputError, UsageError
from vllm_quant_plugin.formats import Format, formats, get_format, parse_quantization_config, stored_scheme
from vllm_quant_plugin.formats.host import DeviceType
from vllm_quant_plugin.formats.registry import module_shape, stored_model
from vllm_quant_plugin.formats.verdict import Verdict, check_output, kind_of, named_parts, who_serves
from vllm_quant_plugin.hub import resolve_model
from vllm_quant_plugin.quantize.io.output import OutputFolder, copy_auxiliary_files, free_disk
from vllm_quant_plugin.quantize.io.report import describe_source, hash_tensor_files, versions
from vllm_quant_plugin.quantize.modules import kept_modules
from vllm_quant_plugin.schemes import ModelScheme, StoredScheme
from vllm_quant_plugin.sizes import format_size
from vllm_quant_plugin.transforms import uncancelled

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
        served_by: device -> who serves the output: ``vLLM``, or this plugin's method or kernels.
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
    served_by: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def _plan(checkpoint: Checkpoint, target: Format) -> tuple[ModelScheme, dict[str, tuple[StoredScheme, StoredScheme]]]:
    """The model's schemes, and module -> (scheme now, scheme after)."""
    model = stored_model(checkpoint)
    if model is None:
        raise CheckpointError(f"{checkpoint.path}: not quantized", "quantize it with `vllm-quant quantize`")
    if model.method == target.name:
        raise UsageError(f"{checkpoint.path}: is {target.name} already", "there is nothing to convert")
    needed = uncancelled(model.online, quantized_cache=bool(model.kv_cache))
    if needed:
        raise UsageError(
            f"{checkpoint.path}: transform_config: {needed[0].describe()} runs on activations, which {target.name} "
            "cannot say: without it the model would answer otherwise",
            "keep it as it is, or quantize the original model into the format instead",
        )
    plan: dict[str, tuple[StoredScheme, StoredScheme]] = {}
    for name, tensors in checkpoint.modules():
        scheme = stored_scheme(name, tensors, model, _class_of(name))
        if scheme is None:
            continue
        try:
            plan[name] = scheme, target.store(scheme)
        except UsageError as error:
            raise UsageError(f"{name} {error.message}", error.hint) from None
    if not plan:
        raise CheckpointError(f"{checkpoint.path}: no quantized module", "config.json and weights do not agree")
    return model, plan


def _config(
    checkpoint: Checkpoint,
    model: ModelScheme,
    plan: Mapping[str, tuple[StoredScheme, StoredScheme]],
    target: Format,
) -> dict[str, Any]:
    """The ``quantization_config`` after. Raises UsageError where the format's config cannot say it."""
    schemes = {name: after for name, (_, after) in plan.items()}
    common = Counter(schemes.values()).most_common(1)[0][0]
    kept = [name for name in kept_modules(checkpoint, schemes) if name not in schemes]
    return target.write_config(schemes, common, kept, kv_cache=bool(model.kv_cache))


def _verdicts(
    checkpoint: Checkpoint, plan: Mapping[str, tuple[StoredScheme, StoredScheme]], config: dict[str, Any], to: str
) -> dict[DeviceType, Verdict]:
    """Device -> who will serve the output there.

    Raises:
        UsageError: nobody does, or the new config does not reach a module.
    """
    model, modules, written = parse_quantization_config(config), dict(checkpoint.modules()), []
    for name, (before, _) in plan.items():
        scheme = model.scheme_for(name, _class_of(name))
        if scheme is None:
            raise UsageError(
                f"{name}: a quantized {kind_of(name)} has no place in a {to} config",
                "choose another format, or leave that module in 16 bits",
            )
        written.append((name, scheme, *_shape(checkpoint, name, modules[name], before)))
    return check_output(model, named_parts(written), f"{checkpoint.path} as {to}")


def _class_of(name: str) -> str:
    """The class by which a config's targets mean the module."""
    return "Embedding" if kind_of(name) == "embedding" else "Linear"


def _shape(
    checkpoint: Checkpoint, name: str, tensors: Mapping[str, TensorInfo], scheme: StoredScheme
) -> tuple[int, int]:
    """(out_features, in_features) of a quantized module."""
    from vllm_quant_plugin.quantize.io.shards import read_tensor

    if "weight_shape" in tensors:
        n, k = read_tensor(checkpoint, f"{name}.weight_shape").tolist()
        return int(n), int(k)
    return module_shape(tensors, scheme)


def _same(again: CanonicalWeight, weight: CanonicalWeight) -> bool:
    import torch

    return torch.equal(again.dequantize(torch.float64), weight.dequantize(torch.float64))


def _explicit(weight: CanonicalWeight, scheme: StoredScheme) -> CanonicalWeight:
    """The same weight with the zero points and the permutation that ``scheme`` stores even where they say nothing."""
    import torch

    zeros, g_idx = weight.zeros, weight.g_idx
    if not scheme.symmetric and zeros is None:
        zeros = torch.full(weight.scales.shape, 1 << (weight.bits - 1), dtype=torch.uint8)
    if scheme.act_order and g_idx is None:
        g_idx = weight.group_index().int()
    return replace(weight.plain(), zeros=zeros, g_idx=g_idx)


def _convert_module(
    checkpoint: Checkpoint, name: str, before: StoredScheme, after: StoredScheme, tensors: Mapping[str, TensorInfo]
) -> dict[str, torch.Tensor]:
    """A module's tensors in its new format.

    Raises:
        UsageError: the new format cannot hold the weight exactly.
    """
    from vllm_quant_plugin.quantize.io.shards import read_tensor

    n, k = _shape(checkpoint, name, tensors, before)
    source, target = get_format(before), get_format(after)
    known = source.tensors(before, n, k)
    stored = {named: leaf for leaf in tensors if (named := source.leaf(before, leaf)) in known}
    held = {named: read_tensor(checkpoint, f"{name}.{leaf}") for named, leaf in stored.items()}
    source.validate(name, held, before, n, k)
    weight = source.unpack(held, before, n, k).validate()
    if weight.g_idx is not None and not after.act_order:
        raise UsageError(
            f"{name} has a g_idx that its config does not announce", "set desc_act (actorder: group) in config.json"
        )
    if after.symmetric and weight.zeros is not None:
        raise UsageError(f"{name} has zero points though its config says symmetric", "fix config.json")
    made = target.pack(_explicit(weight, after), after)
    target.validate(name, made, after, n, k)
    if not _same(target.unpack(made, after, n, k), weight):
        dtype = str(weight.scales.dtype).removeprefix("torch.")
        raise UsageError(
            f"{name}: its {dtype} scales cannot be kept exactly in {target.name}",
            "nothing was written; quantize the original model into the format instead",
        )
    return {**made, **{leaf: held[leaf] for leaf in _CARRIED if leaf in held}}


def targets() -> list[str]:
    """The formats that a model can be converted to."""
    return [format.name for format in formats() if format.target]


def convert_model(
    model: str | Path, output: str | Path, to: str, *, overwrite: bool = False, progress: Progress = no_progress
) -> ConvertReport:
    """Write a quantized model in another format, every weight the same number.

    Everything that the config decides is checked before the first weight is read; each module is read back and
    compared. The output appears under its name only when it is complete.

    Args:
        model: folder with a quantized checkpoint, or hub id.
        output: folder to create.
        to: name of a format that is written; ``targets`` lists them.
        overwrite: replace ``output`` when it is there.
        progress: called with (module, done, total).

    Raises:
        UsageError: the format cannot hold this model without loss; the message says why.
        CheckpointError: the input is missing, damaged, unquantized or of a kind that is not read.
        OutputError: the output exists or cannot be written.
    """
    from vllm_quant_plugin.quantize.io.shards import ModelWriter, read_tensor

    started = time.monotonic()
    target = next((format for format in formats() if format.name == to and format.target), None)
    if target is None:
        raise UsageError(f"format {to!r} is not known", f"--to is one of {', '.join(targets())}")
    folder = resolve_model(model)
    checkpoint = read_checkpoint(folder)
    scheme, plan = _plan(checkpoint, target)
    config = _config(checkpoint, scheme, plan, target)
    verdicts = _verdicts(checkpoint, plan, config, to)
    served_by = {str(device): who_serves(verdict) for device, verdict in verdicts.items()}
    place = OutputFolder(Path(output), overwrite=overwrite, source=folder)
    # A shard's spool lives beside the shard while that is written.
    if free_disk(place.final.parent) < 2 * checkpoint.nbytes:
        needed = format_size(2 * checkpoint.nbytes)
        raise OutputError(f"{output}: the conversion needs {needed} of disk, which are not free", "free some space")
    report = ConvertReport(
        str(model), str(output), scheme.method, to, len(plan), checkpoint.nbytes,
        source=describe_source(checkpoint), versions=versions(), served_by=served_by,
    )  # fmt: skip
    with place as work:
        writer, done = ModelWriter(work, checkpoint), 0
        for name, tensors in checkpoint.modules():
            if scheme.transform_held_by(name):
                continue  # of no effect: folded into the weights, or cancelled
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
                n, k = _shape(checkpoint, name, tensors, before)
                source, known = get_format(before), get_format(before).tensors(before, n, k)
                leaves = {leaf for leaf in leaves if source.leaf(before, leaf) not in known}
                done += 1
                progress(name, done, len(plan))
            for leaf in sorted(leaves):
                stored = f"{name}.{leaf}" if name else leaf
                writer.add(stored, read_tensor(checkpoint, stored))
        writer.close()
        whole = {k: v for k, v in checkpoint.config.items() if k not in ("quantization_config", "compression_config")}
        write_json(work / "config.json", whole | {"quantization_config": config})
        copy_auxiliary_files(folder, work)
        report.bytes_after = read_checkpoint(work).nbytes
        report.files = hash_tensor_files(work)
        report.seconds = round(time.monotonic() - started, 2)
        write_json(work / RECORD_NAME, report.to_json())
    return report
