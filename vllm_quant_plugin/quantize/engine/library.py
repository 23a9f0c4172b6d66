"""A run by a library as a whole: the job for its worker, and its checkpoint checked and copied into shards.

GPTQModel and AutoAWQ are installed in this environment, llm-compressor in one of its own; see ``backends``.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vllm_quant_plugin.backends.process import find_worker, run_worker
from vllm_quant_plugin.checkpoint import Checkpoint, read_checkpoint, write_json
from vllm_quant_plugin.console import Progress
from vllm_quant_plugin.errors import BackendError, CheckpointError, VqpError
from vllm_quant_plugin.formats import get_format, parse_quantization_config
from vllm_quant_plugin.formats.compressed_tensors.config import KV_CACHE_SCHEME, group_config
from vllm_quant_plugin.quantize.algorithm import Library
from vllm_quant_plugin.quantize.io.shards import DTYPES, ModelWriter, read_tensor
from vllm_quant_plugin.quantize.modules import QuantizedLinear, kept_modules
from vllm_quant_plugin.quantize.recipe import Recipe
from vllm_quant_plugin.schemes import StoredScheme

_CACHE_SCALES = (".k_scale", ".v_scale")


def _job(
    checkpoint: Checkpoint,
    recipe: Recipe,
    library: Library,
    modules: Sequence[QuantizedLinear],
    tokens: list[list[int]],
) -> dict[str, Any]:
    """What the worker needs beside the folders, as JSON values."""
    job = {
        "library": library.name, "tokens": tokens, "seed": recipe.calibration.seed if recipe.calibration else 0,
        **library.job(recipe.scheme, recipe.options),
    }  # fmt: skip
    if not library.own_environment:
        return job
    measured = recipe.kv_cache or recipe.algorithm.calibrated(recipe.scheme, recipe.options)
    return {
        **job,
        "scheme": group_config(recipe.scheme, ["Linear"]),
        "ignore": kept_modules(checkpoint, {m.name for m in modules}),
        "kv_cache": {k: v for k, v in KV_CACHE_SCHEME.items() if k != "observer"} if recipe.kv_cache else None,
        "tokens": tokens if measured else [],
    }


def quantize_with_library(
    checkpoint: Checkpoint,
    modules: Sequence[QuantizedLinear],
    recipe: Recipe,
    tokens: list[list[int]],
    work: Path,
    writer: ModelWriter,
    progress: Progress,
) -> int:
    """Quantize with the recipe's library and write every tensor.

    Returns:
        Peak resident memory of the child, bytes.

    Raises:
        BackendError: the library is missing or failed; the message is its last line.
    """
    library = recipe.library
    assert library is not None
    worker = find_worker(library.name, own_environment=library.own_environment)
    scratch = work / "library"
    scratch.mkdir()
    try:
        places = {
            "model": str(checkpoint.path.resolve()),
            "output": str((scratch / "model").absolute()),
        }
        write_json(scratch / "job.json", {**places, **_job(checkpoint, recipe, library, modules, tokens)})
        peak = run_worker(worker, scratch / "job.json", scratch / "log", progress)
        try:
            copy_result(checkpoint, modules, places["output"], writer, kv_cache=recipe.kv_cache)
        except (VqpError, ValueError) as err:
            reason = err.message if isinstance(err, VqpError) else str(err)
            raise BackendError(
                f"{library.name} wrote no usable checkpoint: {reason}", "try --backend builtin"
            ) from None
        return peak
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(scratch)


def _check_config(made: Checkpoint, modules: Sequence[QuantizedLinear]) -> None:
    """The library's own config must describe the requested schemes."""
    model = parse_quantization_config(made.quantization_config or {})

    def core(scheme: StoredScheme | None) -> tuple[object, ...] | None:
        if scheme is None:
            return None
        return scheme.value, scheme.group_size, scheme.activation and scheme.activation.dynamic

    for module in modules:
        found = model.scheme_for(module.name)
        if core(found) != core(module.scheme):
            named = found.describe() if found else "16-bit"
            raise CheckpointError(f"its config calls {module.name} {named}, not {module.scheme.describe()}")


def _stored(name: str, leaf: str, tensor: torch.Tensor, scheme: StoredScheme) -> torch.Tensor:
    """A quantized module's tensor in the dtype that the builtin backend stores it in; refuses NaN and infinity."""
    if leaf in ("scales", "weight_scale", "input_scale") and not bool(torch.isfinite(tensor.float()).all()):
        raise CheckpointError(f"{name}.{leaf} holds NaN or infinity")
    if leaf == "scales":
        # AutoAWQ's and AutoGPTQ's layouts keep scales in float16; gptqmodel leaves AWQ's in the model's dtype.
        return tensor.half()
    if leaf == "input_scale":
        return tensor.float().reshape(1)
    if leaf == "weight_scale" and get_format(scheme).scale_dtype(scheme, "bfloat16") == "float32":
        return tensor.float()
    return tensor


def _copy_module(made: Checkpoint, module: QuantizedLinear, writer: ModelWriter) -> None:
    scheme, n, k = module.scheme, module.out_features, module.in_features
    layout = get_format(scheme)
    leaves = [leaf for leaf in layout.tensors(scheme, n, k) if f"{module.name}.{leaf}" in made.tensors]
    tensors = {leaf: _stored(module.name, leaf, read_tensor(made, f"{module.name}.{leaf}"), scheme) for leaf in leaves}
    layout.validate(module.name, tensors, scheme, n, k)
    weight = layout.unpack(tensors, scheme, n, k).validate()
    if not bool(torch.isfinite(weight.scales.float()).all()):
        raise CheckpointError(f"the scales of {module.name} hold NaN or infinity")
    if scheme.activation is not None and not scheme.activation.dynamic and "input_scale" not in tensors:
        raise CheckpointError(f"{module.name} has no input_scale")
    writer.add_module(module.name, tensors)


def copy_result(
    checkpoint: Checkpoint, modules: Sequence[QuantizedLinear], folder: str, writer: ModelWriter, *, kv_cache: bool
) -> None:
    """Check the library's checkpoint in ``folder`` and copy it into shards like the input's.

    Raises:
        VqpError, ValueError: it is not what was requested, or could not be loaded.
    """
    made = read_checkpoint(folder)
    _check_config(made, modules)
    for module in modules:
        _copy_module(made, module, writer)
    names = {m.name for m in modules}
    for name, info in sorted(checkpoint.tensors.items()):
        if name.removesuffix(".weight") in names:
            continue
        # What a library leaves out (a tied head, a tower) is as it was.
        source = made if name in made.tensors else checkpoint
        writer.add(name, read_tensor(source, name).to(DTYPES.get(info.dtype)))
    caches = sorted(name for name in made.tensors if name.endswith(_CACHE_SCALES)) if kv_cache else []
    if kv_cache and not caches:
        raise CheckpointError("there are no KV-cache scales")
    for name in caches:
        scale = read_tensor(made, name).float().reshape(-1)
        if scale.numel() != 1 or not bool(torch.isfinite(scale).all()):
            raise CheckpointError(f"{name} is no finite scale")
        writer.add(name, scale)
