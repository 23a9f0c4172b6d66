"""``vllm-quant inspect``: what a checkpoint holds and who would serve it, from its headers. No torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import typer

from vllm_quant_kernels import env
from vllm_quant_kernels.kernel import Device
from vllm_quant_plugin.architecture.sharding import TP_SIZES, tp_refusals
from vllm_quant_plugin.checkpoint import Checkpoint, read_checkpoint
from vllm_quant_plugin.errors import VqpError
from vllm_quant_plugin.formats import Host, get_format, stored_scheme
from vllm_quant_plugin.formats.base import Kind
from vllm_quant_plugin.formats.host import DeviceType
from vllm_quant_plugin.formats.registry import legal_tp, module_shape, stored_model
from vllm_quant_plugin.formats.verdict import PartVerdict, Verdict, judge_checkpoint, kind_of
from vllm_quant_plugin.hub import resolve_model
from vllm_quant_plugin.kernel_use import kernel_use
from vllm_quant_plugin.schemes import ModelScheme, StoredScheme


@dataclass(frozen=True)
class ModuleInfo:
    """One module of the checkpoint.

    Attributes:
        scheme: None when it is stored in 16 or 32 bits.
        out_features, in_features: of a matrix, else 0.
        nbytes: all of its tensors.
        server: who serves it: ``vLLM`` or this plugin's method.
        kernel: name of the kernel that runs it; "" for what is no matrix.
        refused: why vLLM's own method does not serve it, "" where it does.
        kernel_why: why the kernel is not one of this project's, "" where it is, or there is none.
        row_parallel_tp: tensor-parallel sizes whose row-parallel shards are whole groups.
    """

    name: str
    kind: Kind
    scheme: StoredScheme | None
    out_features: int
    in_features: int
    nbytes: int
    server: str
    kernel: str
    refused: str
    row_parallel_tp: tuple[int, ...]
    kernel_why: str = ""


@dataclass(frozen=True)
class Inspection:
    """The whole checkpoint.

    Attributes:
        method: ``quant_method`` on disk, None when unquantized.
        side_file: the file beside config.json that alone describes the quantization, "" where config.json does.
        verdict: who serves it, None when unquantized.
        tp: tensor-parallel size -> why ``plan`` refuses it, "" where it is legal; empty where that is not known.
        transforms: what runs on activations at every step, and of which modules.
    """

    path: str
    architecture: str
    method: str | None
    modules: tuple[ModuleInfo, ...]
    nbytes: int
    device: DeviceType
    verdict: Verdict | None
    tp: dict[int, str]
    side_file: str = ""
    transforms: tuple[str, ...] = ()

    @property
    def in_tree_rejects(self) -> str | None:
        """Why vLLM alone does not serve it; None when it does."""
        return self.verdict.in_tree if self.verdict else None

    @property
    def plugin(self) -> str | None:
        """Our method's name, None when the plugin has none for it."""
        return self.verdict.method if self.verdict else None

    @property
    def automatic(self) -> bool:
        """Whether the plugin takes it without a flag."""
        return self.verdict is not None and self.verdict.claimed is not None and not self.side_file


def inspect_checkpoint(checkpoint: Checkpoint, host: Host) -> Inspection:
    """Describe ``checkpoint`` as ``host`` would serve it.

    Raises:
        CheckpointError: the quantization config is of a kind the plugin does not read.
    """
    model = stored_model(checkpoint)
    judged = judge_checkpoint(checkpoint, model, host) if model else None
    modules = []
    for name, tensors in checkpoint.modules():
        kind = kind_of(name)
        scheme = stored_scheme(name, tensors, model, "Embedding" if kind == "embedding" else "Linear")
        n, k = module_shape(tensors, scheme)
        part = judged.of(kind, scheme, n, k) if judged and scheme else None
        server, kernel = _served(judged, part, n, k, host) if part and judged else ("vLLM", "vLLM" if k else "")
        legal = tuple(legal_tp(scheme, k, TP_SIZES)) if scheme else TP_SIZES
        nbytes = sum(t.nbytes for t in tensors.values())
        refused = part.in_tree if part and part.in_tree else ""
        own = scheme is not None and judged is not None and server == judged.method and bool(k)
        why = kernel_use(scheme, n, k, Device(host.device)).why if own and scheme is not None else ""
        modules.append(ModuleInfo(name, kind, scheme, n, k, nbytes, server, kernel, refused, legal, why))
    return Inspection(
        path=str(checkpoint.path),
        architecture=(checkpoint.config.get("architectures") or ["unknown"])[0],
        method=model.method if model else None,
        modules=tuple(modules),
        nbytes=checkpoint.nbytes,
        device=host.device,
        verdict=judged,
        tp=_tensor_parallel(checkpoint, model, judged),
        side_file=checkpoint.side_file,
        transforms=tuple(f"{one.describe()} of {', '.join(one.targets)}" for one in model.online) if model else (),
    )


def _tensor_parallel(checkpoint: Checkpoint, model: ModelScheme | None, judged: Verdict | None) -> dict[int, str]:
    """The sizes that ``plan`` allows and refuses; empty where it cannot size the model."""
    try:
        return tp_refusals(checkpoint, model, model, plugin=bool(judged and judged.claimed))
    except VqpError:
        return {}


def _served(judged: Verdict, part: PartVerdict, n: int, k: int, host: Host) -> tuple[str, str]:
    """(who, by which kernel) of a quantized module."""
    scheme = part.part.scheme
    if judged.server == "nobody":
        return "nobody", ""
    if judged.server == "plugin":
        return str(judged.method), kernel_name(scheme, n, k, host.device)
    helps = get_format(scheme).kernel_helps(scheme, host, part.part.kind)
    if part.in_tree or (helps and env.choice("VQP_LINEAR_KERNELS") == "first"):
        return "vLLM", kernel_name(scheme, n, k, host.device)
    return "vLLM", part.kernel or "vLLM"


def kernel_name(scheme: StoredScheme | None, n: int, k: int, device: DeviceType) -> str:
    """What the kernel that serves an (n, k) module with this plugin is called; ``vLLM`` where the plugin reads none."""
    return "vLLM" if scheme is None else kernel_use(scheme, n, k, Device(device)).kernel


def verdict(found: Inspection) -> str:
    """One or two sentences: who serves the checkpoint and what the user has to type."""
    judged = found.verdict
    if judged is None:
        return "Unquantized: vLLM serves it as it is; --quantization vqp_int8 or vqp_fp8 quantizes it while loading."
    flag = judged.kv_cache_dtype
    more = f" vLLM's FP8 KV cache needs AVX-512: add --kv-cache-dtype {flag} on this CPU." if flag else ""
    return _who(found, judged, "a CPU" if found.device == "cpu" else "a GPU") + more


def _who(found: Inspection, judged: Verdict, where: str) -> str:
    if judged.server == "nobody":
        return f"Nothing here serves it on {where}: {judged.why_nobody}."
    if found.side_file and found.method in ("awq", "gptq"):
        return _by_flag(found, judged, where)
    if judged.server == "plugin":
        return f"{judged.method} takes it automatically on {where}: in-tree vLLM does not serve {judged.in_tree}."
    if judged.server == "vllm with kernels":
        return f"compressed-tensors serves it on {where} through this plugin's kernels: in-tree has none for " + (
            f"{judged.in_tree}."
        )
    if judged.method:
        return f"In-tree vLLM serves it on {where}; add --quantization {judged.method} to use this plugin's kernels."
    return f"In-tree vLLM serves it on {where}."


def _by_flag(found: Inspection, judged: Verdict, where: str) -> str:
    """vLLM reads a file beside config.json only for the method that the user names."""
    here = f"{found.side_file} alone describes the quantization"
    if judged.in_tree is None:
        return (
            f"In-tree vLLM serves it on {where} with --quantization {found.method}, --quantization {judged.method} by "
            f"this plugin's kernels: {here}."
        )
    return (
        f"--quantization {judged.method} serves it on {where}: {here}, and in-tree vLLM does not serve "
        f"{judged.in_tree}."
    )


def as_dict(found: Inspection) -> dict[str, Any]:
    """The inspection as plain JSON values."""
    return {
        "path": found.path,
        "architecture": found.architecture,
        "quant_method": found.method,
        "quantization_file": found.side_file or None,
        "nbytes": found.nbytes,
        "device": found.device,
        "in_tree_rejects": found.in_tree_rejects,
        "plugin_rejects": found.verdict.plugin if found.verdict else None,
        "server": found.verdict.server if found.verdict else "vllm",
        "plugin_method": found.plugin,
        "automatic": found.automatic,
        "kv_cache_dtype": (found.verdict.kv_cache_dtype or None) if found.verdict else None,
        "verdict": verdict(found),
        "transforms": list(found.transforms),
        "tensor_parallel": {str(tp): reason or None for tp, reason in found.tp.items()},
        "modules": [
            {
                "name": m.name,
                "kind": m.kind,
                "scheme": m.scheme.describe() if m.scheme else None,
                "bits": m.scheme.bits if m.scheme else None,
                "out_features": m.out_features,
                "in_features": m.in_features,
                "nbytes": m.nbytes,
                "server": m.server,
                "kernel": m.kernel or None,
                "kernel_why": m.kernel_why or None,
                "in_tree_rejects": m.refused or None,
                "row_parallel_tp": list(m.row_parallel_tp),
            }
            for m in found.modules
        ],
    }


def _summary(found: Inspection) -> list[tuple[str, str, int, ModuleInfo, int]]:
    """Modules of the same last name, kind and scheme in one line: (name, scheme, count, an example, bytes)."""
    rows: dict[tuple[str, str, Kind], list[ModuleInfo]] = {}
    for m in found.modules:
        last = m.name.rpartition(".")[2]
        rows.setdefault((last, m.scheme.describe() if m.scheme else "16-bit", m.kind), []).append(m)
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
    # Figures first in a narrow terminal: names and kernels fold, sizes are never cut.
    for column in ("module", "scheme", "count", "N x K", "MB", "kernel"):
        figure = column in ("count", "MB", "N x K")
        table.add_column(column, no_wrap=figure, overflow="fold", justify="right" if figure else "left",
                         min_width=len(column) if not figure else None)  # fmt: skip
    lines = [(m.name, m.scheme.describe() if m.scheme else "16-bit", 1, m, m.nbytes) for m in found.modules]
    rows = lines if modules else _summary(found)
    for name, scheme, count, example, nbytes in rows:
        matrix = bool(example.in_features)
        table.add_row(
            name or "(root)",
            scheme,
            str(count),
            f"{example.out_features} x {example.in_features}" if matrix else "",
            f"{nbytes / 1e6:,.2f}",
            example.kernel if matrix else "",
        )
    console = Console()
    console.print(table)
    for transform in found.transforms:
        console.print(f"Online transform {transform}", soft_wrap=True)
    for kernel, why in sorted({(m.kernel, m.kernel_why) for m in found.modules if m.kernel_why}):
        console.print(f"{kernel}, not this project's kernel: {why}", soft_wrap=True)
    for line in _tensor_parallel_lines(found):
        console.print(line, soft_wrap=True)
    console.print(verdict(found), soft_wrap=True)


def _tensor_parallel_lines(found: Inspection) -> list[str]:
    """The sizes that ``plan`` allows, and why it refuses the others."""
    if not found.tp:
        return []
    legal = [str(tp) for tp, reason in found.tp.items() if not reason]
    refused = [f"TP {tp} is refused: {reason}" for tp, reason in found.tp.items() if reason]
    return [f"TP: {' '.join(legal) or 'none'}", *refused]


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
