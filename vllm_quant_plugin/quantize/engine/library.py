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

import torch

from vllm_quant_plugin.backends import llmcompressor_worker
from vllm_quant_plugin.backends.store import require_backend
from vllm_quant_plugin.checkpoint import Checkpoint, read_checkpoint, write_json
from vllm_quant_plugin.console import Progress
from vllm_quant_plugin.errors import BackendError, CheckpointError, VqpError
from vllm_quant_plugin.formats import get_format
from vllm_quant_plugin.quant_config import parse_quantization_config
from vllm_quant_plugin.quantize.engine.run import DTYPES
from vllm_quant_plugin.quantize.io.config_writer import KV_CACHE_SCHEME, ct_group
from vllm_quant_plugin.quantize.io.shards import ModelWriter, read_tensor
from vllm_quant_plugin.quantize.modules import Linear, kept_modules
from vllm_quant_plugin.quantize.recipe import Recipe
from vllm_quant_plugin.scheme import Scheme

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
    return [sys.executable, "-m", "vllm_quant_plugin.backends.library_worker"], found


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


_CACHE_SCALES = (".k_scale", ".v_scale")


def _check_config(made: Checkpoint, modules: Sequence[Linear], recipe: Recipe) -> None:
    """The library's own config must describe what was asked for."""
    model = parse_quantization_config(made.quantization_config or {})

    def core(scheme: Scheme | None) -> tuple[object, ...] | None:
        if scheme is None:
            return None
        dynamic = scheme.activation.dynamic if scheme.activation else None
        return scheme.kind, scheme.bits, scheme.group_size, dynamic if recipe.backend == "llmcompressor" else None

    for module in modules:
        found, wanted = model.scheme_for(module.name), recipe.scheme_for(module.name)
        if core(found) != core(wanted):
            said = found.describe() if found else "16-bit"
            raise CheckpointError(f"its config calls {module.name} {said}, not {wanted.describe() if wanted else ''}")


def _stored(name: str, leaf: str, tensor: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """A quantized module's tensor in the dtype that the builtin backend stores it in; refuses NaN and infinity."""
    if leaf in ("scales", "weight_scale", "input_scale") and not bool(torch.isfinite(tensor.float()).all()):
        raise CheckpointError(f"{name}.{leaf} holds NaN or infinity")
    if leaf == "scales":
        # AutoAWQ's and AutoGPTQ's layouts keep scales in float16; gptqmodel leaves AWQ's in the model's dtype.
        return tensor.half()
    if leaf == "input_scale":
        return tensor.float().reshape(1)
    if leaf == "weight_scale" and scheme.storage in ("int-quantized", "float-quantized"):
        return tensor.float()
    return tensor


def _copy_module(made: Checkpoint, module: Linear, scheme: Scheme, writer: ModelWriter) -> None:
    layout, (n, k) = get_format(scheme), (module.out_features, module.in_features)
    leaves = [leaf for leaf in layout.specs(scheme, n, k) if f"{module.name}.{leaf}" in made.tensors]
    tensors = {leaf: _stored(module.name, leaf, read_tensor(made, f"{module.name}.{leaf}"), scheme) for leaf in leaves}
    layout.validate(module.name, tensors, scheme, n, k)
    weight = layout.unpack(tensors, scheme, n, k).validate()
    if not bool(torch.isfinite(weight.scales.float()).all()):
        raise CheckpointError(f"the scales of {module.name} hold NaN or infinity")
    if scheme.activation is not None and not scheme.activation.dynamic and "input_scale" not in tensors:
        raise CheckpointError(f"{module.name} has no input_scale")
    writer.add_module(module.name, tensors)


def copy_result(
    checkpoint: Checkpoint, modules: Sequence[Linear], recipe: Recipe, folder_made: str, writer: ModelWriter
) -> None:
    """Check the library's checkpoint and copy it into shards like the input's.

    Raises:
        BackendError: it is not what the recipe asks for, or could not be loaded.
    """
    try:
        made = read_checkpoint(folder_made)
        _check_config(made, modules, recipe)
        schemes = {m.name: recipe.scheme_for(m.name) or recipe.scheme for m in modules}
        for module in modules:
            _copy_module(made, module, schemes[module.name], writer)
        for name, info in sorted(checkpoint.tensors.items()):
            if name.removesuffix(".weight") in schemes:
                continue
            # What a library leaves out (a tied head, a tower) is as it was.
            source = made if name in made.tensors else checkpoint
            writer.add(name, read_tensor(source, name).to(DTYPES.get(info.dtype)))
        caches = sorted(name for name in made.tensors if name.endswith(_CACHE_SCALES)) if recipe.kv_cache else []
        if recipe.kv_cache and not caches:
            raise CheckpointError("there are no KV-cache scales")
        for name in caches:
            scale = read_tensor(made, name).float().reshape(-1)
            if scale.numel() != 1 or not bool(torch.isfinite(scale).all()):
                raise CheckpointError(f"{name} is no finite scale")
            writer.add(name, scale)
    except (VqpError, ValueError) as err:
        reason = err.message if isinstance(err, VqpError) else str(err)
        raise BackendError(f"{recipe.backend} wrote no usable checkpoint: {reason}", "try --backend builtin") from None
