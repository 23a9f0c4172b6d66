"""``vllm-quant verify-kernels``: the command."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from vllm_quant_kernels.cuda.verify import machine, store
from vllm_quant_kernels.cuda.verify.families import FAMILIES, SPEED_CLASSES
from vllm_quant_kernels.cuda.verify.machine import Gpu
from vllm_quant_kernels.cuda.verify.verdict import Verdict
from vllm_quant_plugin.console import progress_bar
from vllm_quant_plugin.errors import BackendError, UsageError
from vllm_quant_plugin.verify_kernels.proof import make_verdict, required_key
from vllm_quant_plugin.verify_kernels.summary import all_right, one_line, ratios_of, rows_of
from vllm_quant_plugin.writing import writing

SECONDS, LEAST_SECONDS = 300.0, 5.0
NOT_RIGHT = 1


def verify_kernels(
    device: Annotated[int, typer.Option(metavar="N", help="The GPU, counted as CUDA_VISIBLE_DEVICES does.")] = 0,
    seconds: Annotated[float, typer.Option(metavar="S", help="About how long it may take.")] = SECONDS,
    forget: Annotated[bool, typer.Option("--forget", help="Delete the verdicts on this model of GPU instead.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Prove the CUDA kernels on this GPU, and time them beside vLLM's.

    Every kernel family runs in a process of its own with a time limit, so that a hang or a fault costs nothing. The
    verdict is a file in your cache: layers run on a kernel of this project only where it says so, else on vLLM's.
    It holds for this model of GPU, driver, CUDA library, vLLM and version of this project.

    Exit codes: 0 every family is right; 1 one is not (the verdict is kept, that one is not used); 7 there is no GPU or
    no CUDA library; 8 the verdict cannot be written.
    """
    gpu = _gpu(device)
    if forget:
        with writing(store.folder()):
            deleted = store.forget(gpu.name)
        print(json.dumps({"gpu": gpu.name, "forgotten": [str(path) for path in deleted]}) if as_json
              else f"{gpu.name}: {len(deleted)} verdict{'' if len(deleted) == 1 else 's'} forgotten")  # fmt: skip
        return
    if not seconds >= LEAST_SECONDS:
        raise UsageError(f"--seconds {seconds:g} is too short", f"give at least {LEAST_SECONDS:g}")
    required_key(gpu)
    with progress_bar("verifying", enabled=not as_json) as progress, writing(store.folder()):
        verdict = make_verdict(gpu, seconds, progress)
    if as_json:
        document = verdict.to_json() | {"file": str(store.path_of(verdict.key)), "summary": one_line(verdict)}
        print(json.dumps(document, indent=2))
    else:
        _print(verdict)
    if not all_right(verdict):
        raise typer.Exit(NOT_RIGHT)


def _gpu(index: int) -> Gpu:
    """The visible GPU ``index``. Raises BackendError without any, UsageError for one that is not there."""
    gpus = machine.local_gpus()
    if not gpus:
        raise BackendError("no NVIDIA GPU answers here: nothing was verified", "run it on the machine that will serve")
    if not 0 <= index < len(gpus):
        raise UsageError(f"--device {index}: there are {len(gpus)} GPUs", f"give 0 to {len(gpus) - 1}")
    return gpus[index]


def _print(verdict: Verdict) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title=f"Right on {verdict.key.gpu}", title_justify="left")
    for column in ("family", "found", "seconds"):
        table.add_column(column, justify="right" if column == "seconds" else "left", no_wrap=True)
    table.add_column("why", overflow="fold")
    for name in FAMILIES:
        if found := verdict.families.get(name):
            table.add_row(name, found.status, f"{found.seconds:.1f}", found.reason, style=_STYLES.get(found.status))
    console.print(table)
    table = Table(title="Beside vLLM's kernels: their time over ours by M", title_justify="left")
    for column in ("layer", "their kernel", "time", "faster for M", "serves"):
        table.add_column(column, overflow="fold")
    for name in SPEED_CLASSES:
        why, speed = verdict.why_not(name), verdict.speed.get(name)
        peers = ", ".join(sorted({t.peer for t in speed.timings})) if speed else ""
        who = "ours" if why is None else f"vLLM's: {why}"
        table.add_row(name, peers, ratios_of(verdict, name), rows_of(verdict, name), who)
    console.print(table)
    console.print(one_line(verdict), soft_wrap=True)
    console.print(f"kept in {store.path_of(verdict.key)}", soft_wrap=True)


_STYLES = {"right": None, "absent": "dim", "unfinished": "yellow", "wrong": "red", "hung": "red", "died": "red",
           "failed": "red"}  # fmt: skip
