"""Quantization by a library as a whole, in a process of its own.

The child keeps the library's imports, threads, output and memory away from the caller. It reads a job
file, reports progress as JSON lines on a pipe, and saves the library's own checkpoint, which is checked and
copied into shards like the input's. GPTQModel and AutoAWQ live in this environment, llm-compressor in one of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vllm_quant_plugin.backends import llmcompressor_worker
from vllm_quant_plugin.backends.store import require_backend
from vllm_quant_plugin.checkpoint import Checkpoint
from vllm_quant_plugin.errors import BackendError
from vllm_quant_plugin.quantize.config_json import KV_CACHE_SCHEME, ct_group
from vllm_quant_plugin.quantize.library_result import copy_result
from vllm_quant_plugin.quantize.modules import Linear, kept_modules
from vllm_quant_plugin.quantize.output import write_json
from vllm_quant_plugin.quantize.progress import Progress
from vllm_quant_plugin.quantize.recipe import Recipe
from vllm_quant_plugin.quantize.shards import ModelWriter

_LOG_LINES = 400


def _last_reason(log: Path) -> str:
    """The line of a log that says most about a failure: the last that is no warning or frame."""
    lines = log.read_text("utf-8", errors="replace").splitlines()[-_LOG_LINES:]
    for line in reversed(lines):
        if line.strip() and not line.startswith(" ") and "Warning" not in line:
            return line.strip()[:300]
    return "no output"


def _program(recipe: Recipe) -> tuple[list[str], dict[str, str]]:
    """The worker's command line without its arguments, and its environment."""
    if recipe.backend == "llmcompressor":
        clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
        python = str(require_backend(recipe.backend).python)
        return [python, "-I", str(Path(llmcompressor_worker.__file__).resolve())], clean
    # What this process imports from a relative path must still be found from the job's folder.
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(str(Path(p).resolve()) for p in sys.path if p)}
    return [sys.executable, "-m", "vllm_quant_plugin.quantize.library_worker"], found


def _job(checkpoint: Checkpoint, recipe: Recipe, modules: Sequence[Linear], tokens: list[list[int]]) -> dict[str, Any]:
    if recipe.backend != "llmcompressor":
        return {"recipe": recipe.to_json(), "tokens": tokens}
    activation = recipe.scheme.activation
    measured = recipe.smooth is not None or recipe.kv_cache or (activation is not None and not activation.dynamic)
    return {
        "scheme": ct_group(recipe.scheme, ["Linear"]),
        "ignore": kept_modules(checkpoint, {m.name for m in modules}),
        "smooth": recipe.smooth,
        "kv_cache": {k: v for k, v in KV_CACHE_SCHEME.items() if k != "observer"} if recipe.kv_cache else None,
        "tokens": tokens if measured else [],
        "seed": recipe.calibration.seed if recipe.calibration else 0,
    }


def _run_child(program: tuple[list[str], dict[str, str]], job: Path, log: Path, progress: Progress) -> int:
    """Run the worker to its end; returns its peak resident memory in bytes."""
    read_end, write_end = os.pipe()
    peak, (command, environment) = 0, program
    # Libraries write log files where they are started; the job's folder goes away with them.
    with log.open("wb") as output:
        child = subprocess.Popen(
            [*command, str(job.absolute()), str(write_end)], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            pass_fds=(write_end,), cwd=job.parent, env=environment,
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
    modules: Sequence[Linear],
    recipe: Recipe,
    tokens: list[list[int]],
    work: Path,
    writer: ModelWriter,
    progress: Progress,
) -> int:
    """Quantize with gptqmodel, autoawq or llmcompressor and write every tensor.

    Returns:
        Peak resident memory of the child, bytes.

    Raises:
        BackendError: the library is missing or failed; the message is its last line.
    """
    program = _program(recipe)
    scratch = work / "library"
    scratch.mkdir()
    try:
        places = {
            "model": str(checkpoint.path.resolve()),
            "output": str((scratch / "model").absolute()),
        }
        write_json(scratch / "job.json", {**places, **_job(checkpoint, recipe, modules, tokens)})
        peak = _run_child(program, scratch / "job.json", scratch / "log", progress)
        copy_result(checkpoint, modules, recipe, places["output"], writer)
        return peak
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(scratch)
