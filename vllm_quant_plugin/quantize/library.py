"""AWQ and GPTQ by a library as a whole, in a process of its own.

The child keeps the library's imports, threads, output and memory away from the caller. It reads a job
file, reports progress as JSON lines on a pipe, and saves the library's own checkpoint, whose tensors are
then copied into shards like the input's.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from vllm_quant_plugin.checkpoint import Checkpoint, read_checkpoint
from vllm_quant_plugin.errors import BackendError, VqpError
from vllm_quant_plugin.quantize.layerwise import DTYPES
from vllm_quant_plugin.quantize.output import write_json
from vllm_quant_plugin.quantize.progress import Progress
from vllm_quant_plugin.quantize.recipe import Recipe
from vllm_quant_plugin.quantize.shards import ModelWriter, read_tensor

_LOG_LINES = 400


def _last_reason(log: Path) -> str:
    """The line of a log that says most about a failure: the last that is no warning or frame."""
    lines = log.read_text("utf-8", errors="replace").splitlines()[-_LOG_LINES:]
    for line in reversed(lines):
        if line.strip() and not line.startswith(" ") and "Warning" not in line:
            return line.strip()[:300]
    return "no output"


def _run_child(job: Path, log: Path, progress: Progress) -> int:
    """Run the worker to its end; returns its peak resident memory in bytes."""
    read_end, write_end = os.pipe()
    command = [sys.executable, "-m", "vllm_quant_plugin.quantize.library_worker", str(job.absolute()), str(write_end)]
    peak = 0
    # Libraries write log files where they are started; the job's folder goes away with them. What this
    # process imports from a relative path must still be found there.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(Path(p).resolve()) for p in sys.path if p)}
    with log.open("wb") as output:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=(write_end,),
            cwd=job.parent, env=environment,
        )  # fmt: skip
        os.close(write_end)
        try:
            with os.fdopen(read_end) as events:
                for line in events:
                    event = json.loads(line)
                    peak = max(peak, event.get("peak", 0))
                    if "done" in event:
                        progress(event["what"], event["done"], event["total"])
            code = child.wait()
        except BaseException:
            child.kill()
            child.wait()
            raise
    if code:
        raise BackendError(f"the quantization library failed: {_last_reason(log)}", "try --backend builtin")
    return peak


def quantize_with_library(
    checkpoint: Checkpoint,
    recipe: Recipe,
    tokens: list[list[int]],
    work: Path,
    writer: ModelWriter,
    progress: Progress,
) -> int:
    """Quantize with gptqmodel or autoawq and write every tensor.

    Returns:
        Peak resident memory of the child, bytes.

    Raises:
        BackendError: the library is missing or failed; the message is its last line.
    """
    scratch = work / "library"
    scratch.mkdir()
    try:
        write_json(
            scratch / "job.json",
            {
                "model": str(checkpoint.path.resolve()),
                "output": str((scratch / "model").absolute()),
                "recipe": recipe.to_json(),
                "tokens": tokens,
            },
        )
        peak = _run_child(scratch / "job.json", scratch / "log", progress)
        try:
            made = read_checkpoint(scratch / "model")
        except VqpError as err:
            raise BackendError(f"{recipe.backend} wrote no usable checkpoint: {err.message}", "") from None
        _copy(checkpoint, made, writer)
        return peak
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(scratch)


def _copy(checkpoint: Checkpoint, made: Checkpoint, writer: ModelWriter) -> None:
    for name in sorted(made.tensors):
        tensor = read_tensor(made, name)
        stored = checkpoint.tensors.get(name)
        if stored is not None:
            tensor = tensor.to(DTYPES[stored.dtype])
        elif name.endswith(".scales"):
            # AutoAWQ's and AutoGPTQ's layouts keep scales in float16; gptqmodel leaves AWQ's in the model's dtype.
            tensor = tensor.to(torch.float16)
        elif name == "lm_head.weight":
            # Tied to the embedding in the input; libraries may write it twice.
            continue
        writer.add(name, tensor)
