"""What a quantization algorithm is, and the registry of them. No torch until one runs.

An algorithm is one module: a subclass of ``Algorithm`` that says which weight schemes it makes, which options it has,
what it needs and costs, and how it quantizes a layer or a weight. Whatever is registered is known to ``vllm-quant
quantize -m NAME``, recipe files, the dry run, mixed precision, ``reproduce`` and the model card. From another package:
``register_algorithm``, or an entry point in the group ``vllm_quant_plugin.algorithms`` that leads to an ``Algorithm``.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.metadata
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vllm_quant_kernels.scheme import PER_CHANNEL, ActivationScheme
from vllm_quant_plugin.errors import UsageError
from vllm_quant_plugin.quantize.modules import Linear
from vllm_quant_plugin.quantize.options import SchemeRequest, read_level
from vllm_quant_plugin.quantize.step import SILENT, Step
from vllm_quant_plugin.schemes import StoredScheme

if TYPE_CHECKING:
    import torch
    from torch import nn

    from vllm_quant_kernels.canonical import CanonicalWeight
    from vllm_quant_plugin.quantize.engine.statistics import Moments

ENTRY_POINTS = "vllm_quant_plugin.algorithms"
# Per weight and rounding, which moves memory; measured with one core.
ROUND_SECONDS = 1.5e-8
_BUILTIN = ("awq", "gptq", "int8", "fp8", "rtn")


@dataclass(frozen=True)
class NoOptions:
    """The options of an algorithm that has none."""


@dataclass(frozen=True)
class Cost:
    """What an algorithm adds to reading and writing one decoder layer, an estimate.

    Attributes:
        flop: float32 operations of matrix products, passes over the calibration text included.
        seconds: what does not get faster with matrix products: memory traffic, searches.
        memory_bytes: statistics and work matrices held beside the layer's weights.
        spilled_bytes: of the largest matrix that is kept on disk for a while.
    """

    flop: float = 0.0
    seconds: float = 0.0
    memory_bytes: int = 0
    spilled_bytes: int = 0


@dataclass(frozen=True)
class LayerTask:
    """One decoder layer to quantize.

    Attributes:
        layer: with its weights in float32, which may be changed.
        schemes: local module name -> what it becomes.
        batches: what enters the layer, (B, L, hidden) each.
        kwargs: the layer's keyword arguments.
        options: the algorithm's.
        head_dim: of an attention head.
        dtype: of the model on disk.
        scratch: a folder on the output's disk.
        step: to be told now and then how much of the layer is done.
    """

    layer: nn.Module
    schemes: Mapping[str, StoredScheme]
    batches: list[torch.Tensor]
    kwargs: Mapping[str, Any]
    options: Any
    head_dim: int
    dtype: torch.dtype
    scratch: Path
    step: Step = SILENT

    def sample_output(self) -> torch.Tensor:
        """The layer's output on the first window."""
        from vllm_quant_plugin.quantize.engine.layered_model import run_layer

        return run_layer(self.layer, self.batches[0][:1], self.kwargs)


@dataclass
class SolvedLayer:
    """What became of a ``LayerTask``, by local module name.

    Attributes:
        weights: quantized weights.
        errors: share of the module's output energy that is lost on the calibration text.
        tokens: calibration tokens that reached the module.
        more: further tensors to store, by local tensor name.
    """

    weights: dict[str, CanonicalWeight] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    more: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Library:
    """A library that runs an algorithm over the whole model, in a process of its own (``backends``).

    Attributes:
        name: as ``--backend`` spells it.
        job: (scheme, options) to what the library's worker needs, as JSON values.
        refusal: why it cannot write a scheme, None when it can.
        own_environment: installed by ``vllm-quant backends install``; writes compressed-tensors.
    """

    name: str
    job: Callable[[StoredScheme, Any], dict[str, Any]]
    refusal: Callable[[StoredScheme], str | None] = lambda scheme: None
    own_environment: bool = False


class Algorithm(ABC):
    """A quantization algorithm; see the module's docstring.

    Attributes:
        name: as ``-m`` spells it.
        bits: bit widths that it makes.
        options: a frozen dataclass, a group of ``option_groups``; checks its values when it is made.
        act_order: whether it can quantize columns by importance.
        data_free: whether it works without calibration text, one weight at a time (``round_weight``).
        presets: ``--level`` names of its own.
        preset_pattern: ``--level`` names that mean this algorithm where ``-m`` is left out, as a regular expression.
        mixed_bits: what a search for a size chooses among (``solve_module``); empty for none.
        libraries: that run it as a whole, beside the built-in engine.
    """

    name: ClassVar[str]
    bits: ClassVar[tuple[int, ...]]
    options: ClassVar[type] = NoOptions
    act_order: ClassVar[bool] = False
    data_free: ClassVar[bool] = False
    presets: ClassVar[tuple[str, ...]] = ()
    preset_pattern: ClassVar[str | None] = None
    mixed_bits: ClassVar[tuple[int, ...]] = ()
    libraries: ClassVar[tuple[Library, ...]] = ()

    @abstractmethod
    def scheme(self, request: SchemeRequest) -> StoredScheme:
        """What a linear module becomes.

        Raises:
            UsageError: the algorithm cannot make it.
        """

    def resolve(self, given: Mapping[str, Any], scheme: StoredScheme, library: Library | None) -> Any:
        """``options`` from those the user gave; here is where a default depends on the scheme or the library.

        Raises:
            UsageError: a value is out of range or does not fit.
        """
        return self.options(**given)

    def calibrated(self, scheme: StoredScheme, options: Any) -> bool:
        """Whether a run needs calibration text."""
        return not self.data_free or (scheme.activation is not None and not scheme.activation.dynamic)

    @abstractmethod
    def cost(self, layer: Sequence[Linear], tokens: int, options: Any) -> Cost:
        """Of one decoder layer's modules with ``tokens`` calibration tokens."""

    @abstractmethod
    def solve(self, task: LayerTask) -> SolvedLayer:
        """Quantize one decoder layer with calibration data."""

    def round_weight(self, weight: torch.Tensor, scheme: StoredScheme, peak: float | None = None) -> CanonicalWeight:
        """Quantize one (N, K) weight without data.

        Args:
            peak: for one scale per tensor: the largest magnitude among the modules that share it.

        Raises:
            ValueError: the weight holds a NaN or an infinity.
        """
        raise NotImplementedError(f"{self.name} needs calibration data")

    def solve_module(self, weight: torch.Tensor, scheme: StoredScheme, options: Any, moments: Moments) -> torch.Tensor:
        """The float32 (N, K) weight after quantization, as far as one module alone shows it; see ``mixed_bits``."""
        raise NotImplementedError(f"{self.name} has no mixed precision")

    def describe(self, options: Any) -> str:
        """A few words on the options for the one-line summary of a recipe."""
        return ""

    def provenance(self, options: Any) -> dict[str, Any]:
        """How the codes were found, for checkpoint formats that record it in their config."""
        return {}

    def library(self, backend: str) -> Library | None:
        """The library of that name, None for ``builtin``.

        Raises:
            UsageError: it does not run this algorithm.
        """
        found = {entry.name: entry for entry in self.libraries}
        if backend != "builtin" and backend not in found:
            raise UsageError(
                f"--backend {backend!r} does not do {self.name}", f"use {' or '.join(('builtin', *found))}"
            )
        return found.get(backend)

    def integer_weights(self, request: SchemeRequest, *, bits: int = 4, group_size: int = 128) -> tuple[int, int]:
        """Bits and group size of integer weights: what is requested, or the given defaults.

        Raises:
            UsageError: out of range, or an act-order that the algorithm has not.
        """
        bits = request.bits if request.bits is not None else bits
        group = request.group_size if request.group_size is not None else group_size
        if bits not in self.bits:
            listed = ", ".join(map(str, self.bits))
            raise UsageError(
                f"{self.name} cannot store {bits} bits per weight", f"--bits is one of {listed} for {self.name}"
            )
        if group != PER_CHANNEL and group < 1:
            raise UsageError(f"group size {group} is impossible", "--group-size is positive, or -1 for one per channel")
        if request.act_order and not self.act_order:
            raise UsageError(f"{self.name} has no act-order", "leave --act-order out, or use -m gptq")
        return bits, group

    def refuse_activations(self, request: SchemeRequest) -> None:
        """For algorithms that quantize weights only.

        Raises:
            UsageError: 8-bit activations are requested.
        """
        if request.quantize_activations:
            raise UsageError(f"{self.name} quantizes weights only", "use -m int8 for 8-bit activations")

    def with_activations(self, scheme: StoredScheme, activations: str | None) -> StoredScheme:
        """``scheme`` with dynamic or static activation scales as ``--activations`` says.

        Raises:
            UsageError: it has no 8-bit activations, or none that can be static.
        """
        activation: ActivationScheme | None = scheme.activation
        if activations is None or activations == "dynamic":
            if activations and activation is None:
                raise UsageError(
                    f"{scheme.describe()} leaves activations alone", "leave --activations out, or use W8A8"
                )
            return scheme
        if activations != "static":
            raise UsageError(f"--activations {activations!r} is not known", "it is dynamic or static")
        if activation is None or scheme.block is not None:
            what = f"{self.name} {scheme.describe()}"
            raise UsageError(f"{what} has no static activations", "use -m int8, or -m fp8 --level tensor")
        return replace(scheme, activation=replace(activation, strategy="tensor", dynamic=False))


_REGISTRY: dict[str, Algorithm] = {}


def register_algorithm(algorithm: Algorithm) -> Algorithm:
    """Make an algorithm known by its name.

    Raises:
        ValueError: another one has this name.
    """
    known = _REGISTRY.setdefault(algorithm.name, algorithm)
    if type(known) is not type(algorithm):
        raise ValueError(f"an algorithm named {algorithm.name} is registered already")
    return known


def unregister_algorithm(name: str) -> None:
    """Remove an algorithm that ``register_algorithm`` added. Raises KeyError where there is none."""
    del _REGISTRY[name]


@functools.cache
def _load() -> None:
    for name in _BUILTIN:
        importlib.import_module(f"vllm_quant_plugin.quantize.algorithms.{name}")
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        register_algorithm(entry.load())


def algorithms() -> list[Algorithm]:
    """All that are registered: the built-in ones, then others in the order of their registration."""
    _load()
    names = dict.fromkeys([*_BUILTIN, *_REGISTRY])
    return [_REGISTRY[name] for name in names]


def get_algorithm(name: str) -> Algorithm:
    """The algorithm of that name, in upper or lower case.

    Raises:
        UsageError: there is none.
    """
    _load()
    found = {known.lower(): known for known in _REGISTRY}.get(name.strip().lower())
    if found is None:
        names = [a.name for a in algorithms()]
        close = difflib.get_close_matches(name.strip().lower(), names, n=1)
        meant = f"did you mean {close[0]}? " if close else ""
        raise UsageError(f"method {name!r} is not known", f"{meant}-m is one of {', '.join(names)}")
    return _REGISTRY[found]


def default_method(level: str | None) -> str:
    """The algorithm that a preset means where none is named: who claims it, else the first that can make it."""
    text = (level or "").strip().lower()
    known = algorithms()
    claims = (
        a.name for a in known if text in a.presets or (a.preset_pattern and re.search(a.preset_pattern, text))
    )  # fmt: skip
    return next(claims, next((a.name for a in known if _makes(a, level)), known[0].name))


def _makes(algorithm: Algorithm, level: str | None) -> bool:
    """Whether the algorithm can make what a preset says; False for a preset that is none."""
    try:
        algorithm.scheme(read_level(level, algorithm.presets) if level else SchemeRequest())
    except UsageError:
        return False
    return True


def algorithm_options() -> list[tuple[str, type]]:
    """Every algorithm's options, for the command line."""
    return [(a.name, a.options) for a in algorithms() if fields(a.options)]


def matmul_flop(layer: Sequence[Linear], tokens: int) -> float:
    """Operations of one pass of ``tokens`` tokens through the modules."""
    return 2.0 * tokens * sum(m.in_features * m.out_features for m in layer)


def moment_flop(layer: Sequence[Linear], tokens: int) -> float:
    """Operations of the second moments of the modules' inputs: 2 K^2 per token and input."""
    # Modules that share an input have its moment taken once.
    inputs = {(m.name.rpartition(".")[0], m.in_features) for m in layer}
    return 2.0 * tokens * sum(k * k for _, k in inputs)
