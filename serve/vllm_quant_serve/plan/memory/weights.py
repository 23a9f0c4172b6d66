"""Weight bytes per rank and the tensor-parallel sizes a model allows, with reasons. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from vllm_quant_plugin.architecture.arch import Layer, ModelArch, Parameter
from vllm_quant_plugin.architecture.placement import Placement
from vllm_quant_plugin.architecture.sharding import refusals, scheme_of_module
from vllm_quant_plugin.formats import get_format
from vllm_quant_plugin.schemes import ModelScheme, StoredScheme
from vllm_quant_serve.plan.memory.storage import Server, local_shape, parameter_bytes


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
        return scheme_of_module(self.arch, self.scheme, module)

    def bytes_of(self, parameter: Parameter, place: Placement) -> int:
        """Bytes of one parameter on one rank; layers repeat themselves, so each kind is computed once."""
        scheme = self.scheme_of(parameter.module) if parameter.linear and self.scheme is not None else None
        p = parameter
        cut = (place.tp, place.dp, place.expert_parallel)
        key = (p.shape, p.role, p.heads, p.count, p.itemsize, p.nbytes, p.linear, p.fused == "next", scheme, cut)
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
            ends = list(self._ends(stage, place.pp))
            stages[stage] += sum(self.bytes_of(p, place) for p in ends) - self._shared_blocks(ends, place)
        rotary = arch.rotary_elements * self.itemsize
        everything = tuple(stage + more + rotary for stage, more in zip(stages, extra, strict=True))
        return Weights(everything, tuple(stages))

    def layer_bytes(self, place: Placement) -> tuple[list[int], list[int]]:
        """Bytes of each layer on one rank: its parameters, and what vLLM derives from them."""
        cut = (place.tp, place.dp, place.expert_parallel)
        if cut not in self._layers:
            layers = self.arch.layers
            self._layers[cut] = (
                [self._of_layer(layer, place) for layer in layers],
                [sum(self.bytes_of(p, place) for p in layer.parameters if p.derived) for layer in layers],
            )
        return self._layers[cut]

    def _of_layer(self, layer: Layer, place: Placement) -> int:
        own = sum(self.bytes_of(p, place) for p in layer.parameters if not p.derived)
        return own + self._cache_scales(layer) - self._shared_blocks(layer.parameters, place)

    def _cache_scales(self, layer: Layer) -> int:
        """Bytes of a layer's KV-cache scales, which vLLM's methods create for every attention."""
        scheme = next(self.scheme.schemes(), None) if self.scheme is not None else None
        if scheme is None or self.plugin:
            return 0
        attentions = sum(cache.kind not in ("mamba", "mla") for cache in layer.caches) + (layer.reads is not None)
        scale = self.itemsize if self.arch.transformers else 4
        return attentions * get_format(scheme).attention_bytes(self.itemsize, scale) if attentions else 0

    def _shared_blocks(self, parameters: Sequence[Parameter], place: Placement) -> int:
        """Bytes of block scales that fused modules share where their parts are no whole blocks."""
        saved, rows, rounded = 0, 0, 0
        for parameter in (p for p in parameters if p.fused and p.linear and not p.role.startswith("expert")):
            scheme = self.scheme_of(parameter.module)
            if scheme is None or scheme.block is None or self.plugin:
                continue
            height, width = scheme.block
            count, (n, k) = local_shape(parameter, place)
            if parameter.fused == "first":
                rows = rounded = 0
            before = rounded - -(-rows // height)
            rows, rounded = rows + n, rounded + -(-n // height)
            saved += 4 * count * -(-k // width) * (rounded - -(-rows // height) - before)
        return saved

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
        online = self.scheme.online if self.scheme is not None else ()
        return refusals(self.arch, self.scheme_of, place, online, plugin=bool(self.plugin))
