"""A built-in run: one decoder layer at a time with calibration data, or one tensor at a time without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import nn

from vllm_quant_kernels.scheme import PER_TENSOR
from vllm_quant_plugin.checkpoint import Checkpoint
from vllm_quant_plugin.console import Progress
from vllm_quant_plugin.errors import BackendError
from vllm_quant_plugin.formats import get_format
from vllm_quant_plugin.formats.fused import siblings
from vllm_quant_plugin.quantize.algorithm import Algorithm, LayerTask, SolvedLayer, matmul_flop
from vllm_quant_plugin.quantize.engine.journal import Journal
from vllm_quant_plugin.quantize.engine.layered_model import LayeredModel, run_layer
from vllm_quant_plugin.quantize.engine.statistics import AttentionRanges, weight_of
from vllm_quant_plugin.quantize.io.shards import DTYPES, ModelWriter, read_tensor
from vllm_quant_plugin.quantize.modules import QuantizedLinear
from vllm_quant_plugin.quantize.recipe import Recipe
from vllm_quant_plugin.quantize.step import Step
from vllm_quant_plugin.schemes import StoredScheme

E4M3_MAX = 448.0
# To compare operations with seconds, roughly.
_NOMINAL_FLOPS = 5e10
_KEY_MODULES = ("k_proj", "qkv_proj", "query_key_value", "c_attn", "Wqkv")


class _SharedPeak:
    """The largest magnitude in a fused group of modules, which have one scale; each tensor is read once more."""

    def __init__(self, checkpoint: Checkpoint, names: set[str]) -> None:
        self._checkpoint, self._names = checkpoint, names
        self._known: dict[tuple[str, ...], float] = {}

    def __call__(self, name: str) -> float:
        group = tuple(n for n in siblings(name) if n in self._names)
        if group not in self._known:
            self._known[group] = max(
                float(read_tensor(self._checkpoint, f"{n}.weight").float().abs().max()) for n in group
            )
        return self._known[group]


def quantize_tensorwise(
    checkpoint: Checkpoint,
    modules: Sequence[QuantizedLinear],
    algorithm: Algorithm,
    writer: ModelWriter,
    progress: Progress,
) -> None:
    """Write every tensor of the checkpoint, the given modules quantized without data, in memory of the largest one.

    Raises:
        ValueError: a weight holds a NaN or an infinity; the message names it.
    """
    chosen = {f"{m.name}.weight": m for m in modules}
    shared, done = _SharedPeak(checkpoint, {m.name for m in modules}), 0
    for info in sorted(checkpoint.tensors.values(), key=lambda t: (t.file.name, t.name)):
        tensor = read_tensor(checkpoint, info.name)
        module = chosen.get(info.name)
        if module is None:
            writer.add(info.name, tensor)
            continue
        peak = shared(module.name) if module.scheme.group_size == PER_TENSOR else None
        try:
            weight = algorithm.round_weight(tensor, module.scheme, peak)
        except ValueError as err:
            raise ValueError(f"{info.name} {err}") from None
        writer.add_module(module.name, get_format(module.scheme).pack(weight, module.scheme))
        done += 1
        progress(module.name, done, len(modules))


def quantize_layerwise(
    checkpoint: Checkpoint,
    modules: Sequence[QuantizedLinear],
    recipe: Recipe,
    tokens: list[list[int]],
    writer: ModelWriter,
    journal: Journal,
    progress: Progress,
) -> dict[str, float]:
    """Write every tensor of the checkpoint, the given modules quantized with calibration windows ``tokens``.

    Each layer is loaded, solved, committed to the journal, and run to give the next one its input.

    Args:
        journal: keeps finished layers; those that it holds already are not solved again.

    Returns:
        Relative output error of each module on the calibration text.

    Raises:
        BackendError: the architecture does not fit this engine.
        ValueError: a weight holds a NaN or an infinity; the message names it.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, algorithm = LayeredModel(checkpoint, device), recipe.algorithm
    text = checkpoint.text_config
    head_dim = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
    dtype = DTYPES.get(_stored_dtype(checkpoint), torch.bfloat16)
    batches, kwargs = model.embed(tokens)
    model.drop_outside()
    if journal.layers:
        batches = [hidden.to(device) for hidden in journal.hidden()]
    in_layers = {name for index in range(model.layers) for name in model.layer_tensors(index)}
    progress("first layer", journal.layers, model.layers)
    for index in range(journal.layers, model.layers):
        prefix = model.layer_prefix(index)
        local = {m.name.removeprefix(f"{prefix}."): m.scheme for m in modules if m.name.startswith(f"{prefix}.")}
        with model.layer(index) as layer:
            _require_finite(layer, prefix, local)
            task = LayerTask(layer, local, batches, kwargs[index], recipe.options, head_dim, dtype, journal.folder)
            solving, passing = _steps(algorithm, prefix, index, modules, model.layers, batches, recipe, progress)
            solved = algorithm.solve(replace(task, step=solving))
            for name, weight in solved.weights.items():
                weight_of(layer, name).copy_(weight.dequantize())
            made = _layer_tensors(checkpoint, layer, prefix, model.layer_tensors(index), solved, local)
            attention = AttentionRanges()
            with attention if recipe.kv_cache else nullcontext():
                for i, hidden in enumerate(batches):
                    batches[i] = run_layer(layer, hidden, kwargs[index])
                    passing.at((i + 1) / len(batches))
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


def _steps(
    algorithm: Algorithm, prefix: str, index: int, modules: Sequence[QuantizedLinear], layers: int,
    batches: Sequence[torch.Tensor], recipe: Recipe, progress: Progress,
) -> tuple[Step, Step]:  # fmt: skip
    """Of layer ``index``: solving it, and the pass that gives the next one its input."""
    own, tokens = [m for m in modules if m.name.startswith(f"{prefix}.")], sum(h.shape[0] * h.shape[1] for h in batches)
    cost, last = algorithm.cost(own, tokens, recipe.options), matmul_flop(own, tokens)
    # A cost counts the pass, too.
    solving = max(cost.flop - last, 0.0) + cost.seconds * _NOMINAL_FLOPS
    # The layer is done when it is in the journal.
    whole = Step(lambda share: progress(prefix, index + min(share, 0.999), layers))
    whole.at(0.0)
    first, second = whole.split((solving, last)) if solving + last > 0 else whole.split((1, 1))
    return first, second


def _require_finite(layer: nn.Module, prefix: str, names: Mapping[str, StoredScheme]) -> None:
    for name in names:
        if not bool(torch.isfinite(weight_of(layer, name)).all()):
            raise ValueError(f"{prefix}.{name}.weight holds NaN or infinity")


def _layer_tensors(
    checkpoint: Checkpoint,
    layer: nn.Module,
    prefix: str,
    names: list[str],
    solved: SolvedLayer,
    schemes: Mapping[str, StoredScheme],
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


def _kv_scales(prefix: str, schemes: Mapping[str, StoredScheme], attention: AttentionRanges) -> dict[str, torch.Tensor]:
    """FP8 scales of a layer's keys and values, float32 (1,), as llm-compressor names them."""
    owner = next((n.rpartition(".")[0] for n in schemes if n.rpartition(".")[2] in _KEY_MODULES), None)
    if owner is None or not attention.key:
        raise BackendError(f"the attention of {prefix} is not one whose KV cache can be measured", "leave --kv-cache")
    peaks = {"k_scale": attention.key, "v_scale": attention.value}
    return {f"{prefix}.{owner}.{leaf}": torch.tensor([peak / E4M3_MAX or 1.0]) for leaf, peak in peaks.items()}
