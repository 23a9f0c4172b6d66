"""Weight bytes per rank and the tensor-parallel sizes a model allows, with reasons. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from vllm_quant_plugin.formats import get_format
from vllm_quant_plugin.formats.base import WORD, canonical_step, fits_columns
from vllm_quant_plugin.schemes import ModelScheme, StoredScheme
from vllm_quant_serve.plan.memory.storage import Placement, Server, padded_vocab, parameter_bytes
from vllm_quant_serve.plan.model.arch import ModelArch, Parameter


@dataclass(frozen=True)
class Weights:
    """Bytes per pipeline stage (one rank of it).

    Attributes:
        stages: everything that stays: parameters, what vLLM derives from them, cos/sin tables.
        parameters: of that, what vLLM counts as the model's parameters.
    """

    stages: tuple[int, ...]
    parameters: tuple[int, ...]

    @property
    def worst(self) -> int:
        return max(self.stages)


class WeightModel:
    """A model's weights under a scheme; answers for any placement.

    Args:
        arch: the parameters.
        scheme: schemes by module; None for a 16-bit model.
        itemsize: bytes per element of the serving dtype.
        plugin: the device on which this plugin's methods hold the quantized weights, "" for vLLM's own.
    """

    def __init__(self, arch: ModelArch, scheme: ModelScheme | None, itemsize: int, plugin: Server = "") -> None:
        self.arch, self.scheme, self.itemsize, self.plugin = arch, scheme, itemsize, plugin
        self._known: dict[tuple[object, ...], int] = {}
        self._layers: dict[tuple[int, int, bool], tuple[list[int], list[int]]] = {}

    @cache  # noqa: B019  # one model per process, and the key is a module name
    def scheme_of(self, module: str) -> StoredScheme | None:
        return self.scheme.scheme_for(module) if self.scheme is not None else None

    def bytes_of(self, parameter: Parameter, place: Placement) -> int:
        """Bytes of one parameter on one rank; layers repeat themselves, so each kind is computed once."""
        scheme = self.scheme_of(parameter.module) if parameter.linear and self.scheme is not None else None
        p = parameter
        cut = (place.tp, place.dp, place.expert_parallel)
        key = (p.shape, p.role, p.heads, p.count, p.itemsize, p.nbytes, p.linear, scheme, cut)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = parameter_bytes(p, place, scheme, self.itemsize, self.plugin)
        return found

    def weights(self, place: Placement) -> Weights:
        """Bytes on one rank of each pipeline stage: parameters and the shared cos/sin table."""
        arch = self.arch
        per_layer, derived = self.layer_bytes(place)
        stages, extra, start = [], [], 0
        for count in place.stages(len(arch.layers)):
            stages.append(sum(per_layer[start : start + count]))
            extra.append(sum(derived[start : start + count]))
            start += count
        for stage in range(place.pp):
            stages[stage] += sum(self.bytes_of(p, place) for p in self._ends(stage, place.pp))
        rotary = arch.rotary_elements * self.itemsize
        everything = tuple(stage + more + rotary for stage, more in zip(stages, extra, strict=True))
        return Weights(everything, tuple(stages))

    def layer_bytes(self, place: Placement) -> tuple[list[int], list[int]]:
        """Bytes of each layer on one rank: its parameters, and what vLLM derives from them."""
        cut = (place.tp, place.dp, place.expert_parallel)
        if cut not in self._layers:
            layers = self.arch.layers
            self._layers[cut] = (
                [sum(self.bytes_of(p, place) for p in layer.parameters if not p.derived) for layer in layers],
                [sum(self.bytes_of(p, place) for p in layer.parameters if p.derived) for layer in layers],
            )
        return self._layers[cut]

    def _ends(self, stage: int, pp: int) -> Iterator[Parameter]:
        """Parameters outside the layers that a stage holds."""
        arch, is_last = self.arch, stage == pp - 1
        for parameter in arch.first:
            if stage == 0 or arch.ends != "guarded" or (is_last and parameter in arch.shared):
                yield parameter
        for parameter in arch.last:
            if is_last or arch.ends == "everywhere" or (arch.ends == "norm_last" and parameter.role == "vocab"):
                yield parameter

    def refusals(self, place: Placement) -> Iterator[str]:
        """Why vLLM or a kernel refuses this placement; nothing when it is legal."""
        arch, tp = self.arch, place.tp
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
        yield from self._stage_refusals(place)
        if arch.expert_limit and tp > arch.experts:
            yield f"more ranks ({tp}) than experts ({arch.experts})"
        if self.scheme is not None and tp > 1:
            yield from self._scheme_refusals(place)

    def _stage_refusals(self, place: Placement) -> Iterator[str]:
        """A layer that reads another's cache on a stage without that layer; only the first is reported."""
        start = 0
        for count in place.stages(len(self.arch.layers)) if place.pp <= len(self.arch.layers) else ():
            for i in range(start, start + count):
                target = self.arch.layers[i].reads
                if target is not None and not start <= target < start + count:
                    yield f"layer {i} reads the cache of layer {target}, which another of {place.pp} stages holds"
                    return
            start += count

    def _scheme_refusals(self, place: Placement) -> Iterator[str]:
        """Shards that are no whole number of groups, blocks or packed words; each kind of module and scheme once."""
        seen: set[tuple[str, tuple[int, ...], StoredScheme]] = set()
        for parameter in self.arch.parameters():
            if not parameter.linear or len(parameter.shape) != 2:
                continue
            if parameter.role.startswith("expert") and place.expert_parallel:
                continue
            leaf = parameter.module.rpartition(".")[2]
            scheme = self.scheme_of(parameter.module)
            # Layers differ in their schemes: the first in 16 bits must not hide a quantized one of the same shape.
            if scheme is None or (leaf, parameter.shape, scheme) in seen:
                continue
            seen.add((leaf, parameter.shape, scheme))
            tp = place.tp * place.dp if parameter.role.startswith("expert") else place.tp
            yield from _shard_refusal(parameter, scheme, leaf, tp, packed_words=not self.plugin)


def _shard_refusal(
    parameter: Parameter, scheme: StoredScheme, leaf: str, tp: int, *, packed_words: bool
) -> Iterator[str]:
    """Why a matrix cannot be cut for ``tp`` ranks.

    Args:
        packed_words: vLLM's own methods load it: they slice the stored tensors, so that a shard must be whole 32-bit
            words and blocks. This plugin unpacks the matrix first and slices its rows anywhere, columns between groups.
    """
    out_features, in_features = parameter.shape
    step = get_format(scheme).shard_step(scheme, in_features) if packed_words else canonical_step(scheme)
    if parameter.role in ("row", "expert_row") and in_features % tp == 0:
        if not fits_columns(step, in_features, tp):
            legal = [t for t in (2, 4, 8, 16, 32, 64) if fits_columns(step, in_features, t)]
            works = f"; TP {', '.join(map(str, legal))} work{'s' * (len(legal) == 1)}" if legal else "; only TP 1 works"
            cut = f"{leaf} {in_features}/{tp} = {in_features // tp}"
            yield f"{cut} {_not_whole(step.columns, step.columns_unit, scheme)}{works}"
    elif parameter.role in ("column", "kv", "expert_column"):
        shard = out_features // (min(tp, parameter.heads) if parameter.role == "kv" else tp)
        if shard % step.rows:
            yield f"{leaf} {out_features}/{tp} = {shard} {_not_whole(step.rows, step.rows_unit, scheme)}"


def _not_whole(step: int, unit: str, scheme: StoredScheme) -> str:
    if unit == WORD:
        return f"does not fill 32-bit words at {scheme.bits} bits"
    return f"is not a multiple of {unit} {step}"
