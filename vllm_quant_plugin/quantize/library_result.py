"""What a library wrote, checked before it becomes an output: config, tensors, shapes, finite scales."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vllm_quant_plugin.checkpoint import Checkpoint, read_checkpoint
from vllm_quant_plugin.errors import BackendError, CheckpointError, VqpError
from vllm_quant_plugin.formats import get_format
from vllm_quant_plugin.quant_config import parse_quantization_config
from vllm_quant_plugin.quantize.layerwise import DTYPES
from vllm_quant_plugin.quantize.modules import Linear
from vllm_quant_plugin.quantize.recipe import Recipe
from vllm_quant_plugin.quantize.shards import ModelWriter, read_tensor
from vllm_quant_plugin.scheme import Scheme

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
