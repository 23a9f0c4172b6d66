"""Which placements vLLM, its kernels and this plugin's refuse, with reasons. No torch.

``inspect``, the dry run of ``quantize`` and ``plan`` all ask here, so that none lists a size that another refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache

from vllm_quant_plugin.architecture.arch import ModelArch, Parameter
from vllm_quant_plugin.architecture.families import describe
from vllm_quant_plugin.architecture.headers import with_headers
from vllm_quant_plugin.architecture.placement import Placement, padded_vocab
from vllm_quant_plugin.checkpoint import Checkpoint
from vllm_quant_plugin.formats import get_format
from vllm_quant_plugin.formats.base import WORD, canonical_step, fits_columns
from vllm_quant_plugin.schemes import ModelScheme, StoredScheme
from vllm_quant_plugin.transforms import Application

TP_SIZES = (1, 2, 4, 8)
SchemeOf = Callable[[str], StoredScheme | None]


def tp_refusals(
    checkpoint: Checkpoint,
    stored: ModelScheme | None,
    served: ModelScheme | None,
    sizes: Sequence[int] = TP_SIZES,
    *,
    plugin: bool = False,
) -> dict[int, str]:
    """Tensor-parallel size -> why it is refused, "" where it is legal; by the rules of ``plan``.

    Args:
        stored: the schemes that the tensors on disk have; None for 16 bits.
        served: the schemes that are served: ``stored`` again, or those that a run of ``quantize`` will write.
        plugin: this plugin's methods load the weights, not vLLM's own.

    Raises:
        CheckpointError: the config is of no family that can be sized, or a key is missing or impossible.
        NoFeasiblePlanError: vLLM does not serve the architecture any more.
    """
    arch = describe(checkpoint.config)
    if checkpoint.tensors:
        arch = with_headers(arch, checkpoint, stored)
    scheme_of = cache(lambda module: scheme_of_module(arch, served, module))
    online = served.online if served is not None else ()
    return {tp: next(refusals(arch, scheme_of, Placement(tp), online, plugin=plugin), "") for tp in sizes}


# Blocks whose ``prefix`` in vLLM's constructors is not the name that their parameters have: stored, asked.
_NAMES_IN_VLLM = {
    "minimax_m2": (".block_sparse_moe.", ".mlp."),
    "granitemoehybrid": (".mamba.", ".mixer."),
    "jamba": (".mamba.", ".mixer."),
}


def scheme_of_module(arch: ModelArch, scheme: ModelScheme | None, module: str) -> StoredScheme | None:
    """The scheme of a module of ``arch``, None for 16 bits.

    The language model of a multimodal one is described without its prefix, of which two spellings are in use; what
    either of them excludes stays in 16 bits. A block counts under the name by which vLLM looks its scheme up.
    """
    if scheme is None:
        return None
    stored, asked = _NAMES_IN_VLLM.get(arch.model_type, ("", ""))
    if stored:
        module = module.replace(stored, asked)
    if not arch.nested or not module.startswith(("model.layers.", "lm_head")):
        return scheme.scheme_for(module)
    inner = module.removeprefix("model.")
    old = f"language_model.{module}"
    new = module if inner == module else f"model.language_model.{inner}"
    names = (old, new)
    found = [scheme.scheme_for(name) for name in names]
    return None if None in found else found[0]


def refusals(
    arch: ModelArch,
    scheme_of: SchemeOf,
    place: Placement,
    online: Sequence[Application] = (),
    *,
    plugin: bool = False,
) -> Iterator[str]:
    """Why vLLM or a kernel refuses this placement; nothing when it is legal.

    Args:
        scheme_of: the scheme of a module, None for 16 bits.
        online: transforms of activations.
        plugin: this plugin's methods load the weights: they cut canonical weights, vLLM's own cut stored tensors.
    """
    yield from arch.refusals
    tp = place.tp
    if place.pp > len(arch.layers):
        yield f"{len(arch.layers)} layers cannot be split into {place.pp} stages"
    cut = tp * place.dp
    for rule in arch.rules:
        expert = rule.what.startswith("expert features")
        if expert and place.expert_parallel:
            continue
        size = cut if expert else tp
        if not rule.allows(size):
            yield rule.refusal(size)
    if padded_vocab(arch.vocab) % tp:
        yield f"the vocabulary of {arch.vocab}, padded to {padded_vocab(arch.vocab)}, does not divide by {tp}"
    if place.pp > 1 and not arch.pipeline:
        yield f"vLLM cannot run {arch.architecture or arch.model_type} in pipeline stages"
    yield from _stage_refusals(arch, place)
    if arch.expert_limit and tp > arch.experts:
        yield f"more ranks ({tp}) than experts ({arch.experts})"
    yield from _mixed_parts(arch, scheme_of)
    yield from _scheme_refusals(arch, scheme_of, place, plugin)
    if tp > 1:
        yield from _transform_refusals(arch, online, tp, plugin)


def _stage_refusals(arch: ModelArch, place: Placement) -> Iterator[str]:
    """A layer that reads another's cache on a stage without that layer; only the first is reported."""
    start = 0
    for count in place.stages(len(arch.layers)) if place.pp <= len(arch.layers) else ():
        for i in range(start, start + count):
            target = arch.layers[i].reads
            if target is not None and not start <= target < start + count:
                yield f"layer {i} reads the cache of layer {target}, which another of {place.pp} stages holds"
                return
        start += count


def _mixed_parts(arch: ModelArch, scheme_of: SchemeOf) -> Iterator[str]:
    """A module that vLLM fuses from parts with different schemes; only the first is reported."""
    first: StoredScheme | None = None
    name = ""
    for parameter in arch.parameters():
        if not parameter.linear or not parameter.fused:
            continue
        scheme = scheme_of(parameter.module)
        if parameter.fused == "first":
            first, name = scheme, parameter.module
        elif scheme != first:
            yield f"vLLM fuses {parameter.module} with {name.rpartition('.')[2]}, whose scheme differs"
            return


def _scheme_refusals(arch: ModelArch, scheme_of: SchemeOf, place: Placement, plugin: bool) -> Iterator[str]:
    """Shards that are no whole number of groups, blocks or packed words; each kind of module and scheme once."""
    seen: set[tuple[str, tuple[int, ...], str, StoredScheme]] = set()
    for parameter in arch.parameters():
        if not parameter.linear or len(parameter.shape) != 2:
            continue
        if parameter.role.startswith("expert") and place.expert_parallel:
            continue
        leaf = parameter.module.rpartition(".")[2]
        scheme = scheme_of(parameter.module)
        # Layers differ in their schemes: the first in 16 bits must not hide a quantized one of the same shape.
        if scheme is None or (leaf, parameter.shape, parameter.role, scheme) in seen:
            continue
        seen.add((leaf, parameter.shape, parameter.role, scheme))
        tp = place.tp * place.dp if parameter.role.startswith("expert") else place.tp
        yield from _shard_refusal(parameter, scheme, leaf, tp, packed_words=not plugin)


def _transform_refusals(arch: ModelArch, online: Sequence[Application], tp: int, plugin: bool) -> Iterator[str]:
    """Blocks of a transform that lie on several ranks; each kind of module once."""
    if online and not plugin:
        yield f"{online[0].describe()}: vLLM's own method transforms on one rank only; this plugin's (-q vqp_*) on more"
        return
    seen: set[tuple[str, tuple[int, ...], Application]] = set()
    for parameter in arch.parameters() if online else ():
        if len(parameter.shape) != 2 or parameter.role not in ("row", "column", "kv"):
            continue
        leaf = parameter.module.rpartition(".")[2]
        for one in online:
            cut = "input" if parameter.role == "row" else "output"
            key = (leaf, parameter.shape, one)
            if one.location != cut or key in seen or not one.matches(parameter.module, "Linear"):
                continue
            seen.add(key)
            features = parameter.shape[1 if cut == "input" else 0]
            share = features // (min(tp, parameter.heads) if parameter.role == "kv" else tp)
            refusal = one.cut_refusal(features, 0, share)
            if refusal:
                yield f"{leaf}: {refusal}"


def _shard_refusal(
    parameter: Parameter, scheme: StoredScheme, leaf: str, tp: int, *, packed_words: bool
) -> Iterator[str]:
    """Why a matrix cannot be cut for ``tp`` ranks.

    Args:
        packed_words: vLLM's own methods load it: they slice the stored tensors, so that a shard must be whole 32-bit
            words and blocks. This plugin unpacks the matrix first and slices its rows anywhere, columns between groups.
    """
    out_features, in_features = parameter.shape
    expert = parameter.role.startswith("expert")
    if packed_words and expert:
        column = parameter.role == "expert_column"
        inner, hidden = (out_features, in_features) if column else (in_features, out_features)
        scheme = get_format(scheme).expert_scheme(scheme, inner // tp, hidden)
    step = get_format(scheme).shard_step(scheme, in_features) if packed_words else canonical_step(scheme)
    if step.columns_unit == "group" and in_features % step.columns:
        yield f"{leaf} {in_features} {_not_whole(step.columns, step.columns_unit, scheme)}"
    elif tp == 1 and not expert:
        return
    elif parameter.role in ("row", "expert_row") and in_features % tp == 0:
        if not fits_columns(step, in_features, tp):
            legal = [t for t in (2, 4, 8, 16, 32, 64) if fits_columns(step, in_features, t)]
            works = f"; TP {', '.join(map(str, legal))} work{'s' * (len(legal) == 1)}" if legal else "; only TP 1 works"
            cut = f"{leaf} {in_features}/{tp} = {in_features // tp}"
            yield f"{cut} {_not_whole(step.columns, step.columns_unit, scheme)}{works}"
    elif parameter.role in ("column", "kv", "expert_column"):
        shard = out_features // (min(tp, parameter.heads) if parameter.role == "kv" else tp)
        rows = step.fused_rows if parameter.fused and step.fused_rows and not expert else step.rows
        if shard % rows:
            yield f"{leaf} {out_features}/{tp} = {shard} {_not_whole(step.rows, step.rows_unit, scheme)}"


def _not_whole(step: int, unit: str, scheme: StoredScheme) -> str:
    if unit == WORD:
        return f"does not fill 32-bit words at {scheme.bits} bits"
    return f"is not a multiple of {unit} {step}"
