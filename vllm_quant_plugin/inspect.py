"""``vllm-quant inspect``: what a checkpoint holds and who would serve it, from its headers. No torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import typer

from vllm_quant_kernels.kernel import Device
from vllm_quant_kernels.registry import choose
from vllm_quant_plugin.checkpoint import Checkpoint, read_checkpoint
from vllm_quant_plugin.formats import (
    Host,
    as_stored,
    get_format,
    parse_quantization_config,
    plugin_method,
    stored_scheme,
    why_in_tree_rejects,
)
from vllm_quant_plugin.formats.host import DeviceType
from vllm_quant_plugin.formats.registry import has_experts, legal_tp, module_shape
from vllm_quant_plugin.hub import resolve_model
from vllm_quant_plugin.schemes import StoredScheme

TP_SIZES = (1, 2, 4, 8)


@dataclass(frozen=True)
class ModuleInfo:
    """One module of the checkpoint.

    Attributes:
        scheme: None when it is stored in 16 or 32 bits.
        out_features, in_features: of a matrix, else 0.
        nbytes: all of its tensors.
        legal_tp: tensor-parallel sizes whose row-parallel shards are whole groups.
    """

    name: str
    scheme: StoredScheme | None
    out_features: int
    in_features: int
    nbytes: int
    legal_tp: tuple[int, ...]


@dataclass(frozen=True)
class Inspection:
    """The whole checkpoint.

    Attributes:
        method: ``quant_method`` on disk, None when unquantized.
        in_tree_rejects: why vLLM alone does not serve it; None when it does.
        plugin: our method's name, None when the plugin only adds kernels.
        automatic: whether the plugin takes it without a flag.
        transforms: what runs on activations at every step, and of which modules.
    """

    path: str
    architecture: str
    method: str | None
    modules: tuple[ModuleInfo, ...]
    nbytes: int
    device: DeviceType
    in_tree_rejects: str | None
    plugin: str | None
    automatic: bool
    transforms: tuple[str, ...] = ()


def inspect_checkpoint(checkpoint: Checkpoint, host: Host) -> Inspection:
    """Describe ``checkpoint`` as ``host`` would serve it.

    Raises:
        CheckpointError: the quantization config is of a kind the plugin does not read.
    """
    config = checkpoint.quantization_config
    model = as_stored(parse_quantization_config(config), checkpoint.modules()) if config else None
    modules = []
    for name, tensors in checkpoint.modules():
        scheme = stored_scheme(name, tensors, model)
        n, k = module_shape(tensors, scheme)
        legal = tuple(legal_tp(scheme, k, TP_SIZES)) if scheme else TP_SIZES
        modules.append(ModuleInfo(name, scheme, n, k, sum(t.nbytes for t in tensors.values()), legal))
    experts = has_experts(checkpoint.config)
    reason = why_in_tree_rejects(model, host, experts=experts) if model else None
    ours = plugin_method(model) if model else None
    return Inspection(
        path=str(checkpoint.path),
        architecture=(checkpoint.config.get("architectures") or ["unknown"])[0],
        method=model.method if model else None,
        modules=tuple(modules),
        nbytes=checkpoint.nbytes,
        device=host.device,
        in_tree_rejects=reason,
        plugin=ours,
        automatic=reason is not None and ours is not None,
        transforms=tuple(f"{one.describe()} of {', '.join(one.targets)}" for one in model.online) if model else (),
    )


def kernel_name(scheme: StoredScheme | None, n: int, k: int, device: DeviceType) -> str:
    """What the kernel that serves an (n, k) module with this plugin is called; ``vLLM`` where the plugin reads none."""
    if scheme is None or not get_format(scheme).readable(scheme):
        return "vLLM"
    return choose(scheme.weight, n, k, Device(device)).kernel.label(scheme.weight)


def verdict(found: Inspection) -> str:
    """One sentence: who serves the checkpoint and what the user has to type."""
    where = "a CPU" if found.device == "cpu" else "a GPU"
    if found.method is None:
        return "Unquantized: vLLM serves it as it is; --quantization vqp_int8 or vqp_fp8 quantizes it while loading."
    if found.automatic:
        return f"{found.plugin} takes it automatically on {where}: in-tree vLLM does not serve {found.in_tree_rejects}."
    if found.plugin and found.in_tree_rejects is None:
        return f"In-tree vLLM serves it on {where}; add --quantization {found.plugin} to use this plugin's kernels."
    if found.in_tree_rejects is None:
        return f"In-tree vLLM serves it on {where}."
    return f"compressed-tensors serves it on {where} through this plugin's kernels: in-tree has none for " + (
        f"{found.in_tree_rejects}."
    )


def as_dict(found: Inspection) -> dict[str, Any]:
    """The inspection as plain JSON values."""
    return {
        "path": found.path,
        "architecture": found.architecture,
        "quant_method": found.method,
        "nbytes": found.nbytes,
        "device": found.device,
        "in_tree_rejects": found.in_tree_rejects,
        "plugin_method": found.plugin,
        "automatic": found.automatic,
        "verdict": verdict(found),
        "transforms": list(found.transforms),
        "modules": [
            {
                "name": m.name,
                "scheme": m.scheme.describe() if m.scheme else None,
                "bits": m.scheme.bits if m.scheme else None,
                "out_features": m.out_features,
                "in_features": m.in_features,
                "nbytes": m.nbytes,
                "kernel": kernel_name(m.scheme, m.out_features, m.in_features, found.device) if m.in_features else None,
                "row_parallel_tp": list(m.legal_tp),
            }
            for m in found.modules
        ],
    }


def _summary(found: Inspection) -> list[tuple[str, str, int, ModuleInfo, int]]:
    """Modules of the same last name and scheme in one line: (name, scheme, count, an example, bytes)."""
    rows: dict[tuple[str, str], list[ModuleInfo]] = {}
    for m in found.modules:
        last = m.name.rpartition(".")[2]
        rows.setdefault((last, m.scheme.describe() if m.scheme else "16-bit"), []).append(m)
    return [(k[0], k[1], len(v), v[0], sum(m.nbytes for m in v)) for k, v in rows.items()]


def inspect(
    model: Annotated[str, typer.Argument(help="Model folder or hub id.")],
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where it would run.")] = "auto",
    modules: Annotated[bool, typer.Option("--modules", help="One line per module instead of per kind.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Format, bits and size per module, and who would serve it here."""
    chosen: DeviceType = local_device() if device == "auto" else device
    found = inspect_checkpoint(read_checkpoint(resolve_model(model)), Host.local(chosen))
    if as_json:
        print(json.dumps(as_dict(found), indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{found.path}  {found.architecture}  {found.nbytes / 1e6:,.1f} MB", title_justify="left")
    for column in ("module", "scheme", "count", "N x K", "MB", "kernel", "TP"):
        table.add_column(column, no_wrap=True, justify="right" if column in ("count", "MB") else "left")
    lines = [(m.name, m.scheme.describe() if m.scheme else "16-bit", 1, m, m.nbytes) for m in found.modules]
    for name, scheme, count, example, nbytes in lines if modules else _summary(found):
        matrix = bool(example.in_features)
        table.add_row(
            name or "(root)",
            scheme,
            str(count),
            f"{example.out_features} x {example.in_features}" if matrix else "",
            f"{nbytes / 1e6:,.2f}",
            kernel_name(example.scheme, example.out_features, example.in_features, found.device) if matrix else "",
            " ".join(map(str, example.legal_tp)) if example.scheme else "",
        )
    console = Console()
    console.print(table)
    for transform in found.transforms:
        console.print(f"Online transform {transform}", soft_wrap=True)
    console.print(verdict(found), soft_wrap=True)


def local_device() -> DeviceType:
    """``cuda`` when an NVIDIA driver answers, else ``cpu``."""
    import pynvml

    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
        pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return "cpu"
    return "cuda" if count else "cpu"
