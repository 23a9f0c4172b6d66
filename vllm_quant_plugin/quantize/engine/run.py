"""One decoder layer at a time: load, measure, quantize, write, go on with its output."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext

import torch
from torch import nn

from vllm_quant_plugin.checkpoint import Checkpoint
from vllm_quant_plugin.errors import BackendError
from vllm_quant_plugin.formats import get_format
from vllm_quant_plugin.quantize.algorithms.datafree import E4M3_MAX, Progress
from vllm_quant_plugin.quantize.algorithms.solvers import SOLVERS
from vllm_quant_plugin.quantize.algorithms.task import SolvedLayer, Task
from vllm_quant_plugin.quantize.engine.journal import Journal
from vllm_quant_plugin.quantize.engine.layered_model import LayeredModel, run_layer
from vllm_quant_plugin.quantize.engine.statistics import AttentionRanges, weight_of
from vllm_quant_plugin.quantize.io.shards import ModelWriter, read_tensor
from vllm_quant_plugin.quantize.modules import Linear
from vllm_quant_plugin.quantize.recipe import Recipe
from vllm_quant_plugin.scheme import Scheme

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
_KEY_MODULES = ("k_proj", "qkv_proj", "query_key_value", "c_attn", "Wqkv")


def quantize_layerwise(
    checkpoint: Checkpoint,
    modules: list[Linear],
    recipe: Recipe,
    tokens: list[list[int]],
    writer: ModelWriter,
    journal: Journal,
    progress: Progress,
) -> dict[str, float]:
    """Write every tensor of the checkpoint, the given modules quantized with calibration windows ``tokens``.

    Args:
        journal: finished layers are kept here, and taken from here.

    Returns:
        Relative output error of each module on the calibration text.

    Raises:
        BackendError: the architecture does not fit this engine.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = LayeredModel(checkpoint, device)
    wanted = {m.name: scheme for m in modules if (scheme := recipe.scheme_for(m.name)) is not None}
    text = checkpoint.text_config
    head_dim = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
    dtype = DTYPES.get(_stored_dtype(checkpoint), torch.bfloat16)
    batches, kwargs = model.embed(tokens)
    model.drop_outside()
    if journal.layers:
        batches = [hidden.to(device) for hidden in journal.hidden()]
    in_layers = {name for index in range(model.layers) for name in model.layer_tensors(index)}
    for index in range(journal.layers, model.layers):
        prefix = model.layer_prefix(index)
        local = {n.removeprefix(f"{prefix}."): s for n, s in wanted.items() if n.startswith(f"{prefix}.")}
        with model.layer(index) as layer:
            task = Task(layer, local, batches, kwargs[index], recipe, head_dim, dtype, journal.folder)
            solved = SOLVERS[recipe.method](task)
            for name, weight in solved.weights.items():
                weight_of(layer, name).copy_(weight.dequantize())
            made = _layer_tensors(checkpoint, layer, prefix, model.layer_tensors(index), solved, local)
            attention = AttentionRanges()
            with attention if recipe.kv_cache else nullcontext():
                for i, hidden in enumerate(batches):
                    batches[i] = run_layer(layer, hidden, kwargs[index])
            if recipe.kv_cache:
                made |= _kv_scales(prefix, local, attention)
        errors = {f"{prefix}.{name}": round(error, 8) for name, error in solved.errors.items()}
        seen = {f"{prefix}.{name}": solved.tokens.get(name, 0) for name in local}
        journal.commit(index, made, errors, batches, seen)
        progress(prefix, index + 1, model.layers)
    for name, tensor in journal.tensors():
        writer.add(name, tensor)
    for name in sorted(set(checkpoint.tensors) - in_layers):
        writer.add(name, read_tensor(checkpoint, name))
    return journal.errors


def _layer_tensors(
    checkpoint: Checkpoint,
    layer: nn.Module,
    prefix: str,
    names: list[str],
    solved: SolvedLayer,
    schemes: Mapping[str, Scheme],
) -> dict[str, torch.Tensor]:
    """A layer as it goes to disk: packed modules, and the rest as folding left it, in its stored dtype."""
    made = {
        f"{prefix}.{name}.{leaf}": tensor
        for name, weight in solved.weights.items()
        for leaf, tensor in get_format(schemes[name]).pack(weight, schemes[name]).items()
    } | {f"{prefix}.{name}": tensor for name, tensor in solved.more.items()}
    parameters = dict(layer.named_parameters())
    for name in names:
        local = name.removeprefix(f"{prefix}.")
        owner, _, leaf = local.rpartition(".")
        if leaf == "weight" and owner in solved.weights:
            continue
        if local in parameters:
            made[name] = parameters[local].detach().to(DTYPES[checkpoint.tensors[name].dtype])
        else:
            made[name] = read_tensor(checkpoint, name)
    return made


def _stored_dtype(checkpoint: Checkpoint) -> str:
    fields = {**checkpoint.config, **checkpoint.text_config}
    name = str(fields.get("dtype") or fields.get("torch_dtype") or "bfloat16")
    return {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}.get(name, "BF16")


def _kv_scales(prefix: str, schemes: Mapping[str, Scheme], attention: AttentionRanges) -> dict[str, torch.Tensor]:
    """FP8 scales of a layer's keys and values, float32 (1,), as llm-compressor names them."""
    owner = next((n.rpartition(".")[0] for n in schemes if n.rpartition(".")[2] in _KEY_MODULES), None)
    if owner is None or not attention.key:
        raise BackendError(f"the attention of {prefix} is not one whose KV cache can be measured", "leave --kv-cache")
    peaks = {"k_scale": attention.key, "v_scale": attention.value}
    return {f"{prefix}.{owner}.{leaf}": torch.tensor([peak / E4M3_MAX or 1.0]) for leaf, peak in peaks.items()}
