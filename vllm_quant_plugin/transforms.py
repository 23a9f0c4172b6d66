"""Transforms: linear maps that a checkpoint's weights expect in front of, or behind, their modules. No torch.

A checkpoint whose weights were rotated before they were quantized (QuaRot, SpinQuant, QuIP) is right only where the
opposite rotation runs on the activations. ``Transform`` says which map, ``Application`` where. What a map of the
weights (``weight_input``, ``weight_output``) did is in the stored weights already; ``online`` ones run at every step.
``vllm_quant_kernels.rotation`` computes them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

from vllm_quant_plugin.errors import CheckpointError

Kind = Literal["hadamard", "random-hadamard", "random-matrix"]
Location = Literal["input", "weight_input", "weight_output", "output", "q_attn", "k_cache"]
KINDS: tuple[Kind, ...] = get_args(Kind)
LOCATIONS: tuple[Location, ...] = get_args(Location)
ONLINE: tuple[Location, ...] = ("input", "output", "q_attn", "k_cache")
ATTENTION: tuple[Location, ...] = ("q_attn", "k_cache")


@dataclass(frozen=True)
class Transform:
    """One linear map, x -> x M along the last dimension.

    Attributes:
        name: of its group in the config; its stored tensors are named by it.
        kind: ``hadamard`` is Sylvester's matrix, which is not stored. ``random-hadamard`` is a stored matrix of signs.
            Both are divided by sqrt(n), and the inverse is the transpose. ``random-matrix`` is a stored matrix as it
            is, and its inverse is stored in its place.
        block: n; the map is block diagonal with blocks of n features. None: one block, as wide as the activations.
        permuted: rows and columns of a Hadamard matrix are permuted alike, by a stored permutation.
        double: computed in float64 where the activations are float32; else in float32.
    """

    name: str
    kind: Kind
    block: int | None = None
    permuted: bool = False
    double: bool = False

    def describe(self) -> str:
        return self.kind + (f" {self.block}" if self.block else "")

    @property
    def stored(self) -> bool:
        """Whether the map cannot be computed without tensors of the checkpoint."""
        return self.kind != "hadamard" or self.permuted

    def kept_bytes(self, size: int) -> int:
        """Bytes that the map of ``size`` features keeps, in float32; one map serves all modules that share it.

        A random Hadamard matrix is kept as its factors: a known matrix of at most 256 rows, as the writing library has
        them, Sylvester's, and signs.
        """
        core = size
        while core > 256 and core % 2 == 0:
            core //= 2
        if size & (size - 1) == 0:
            core = 1 << (size.bit_length() - 1) // 2
        dense = self.kind == "random-matrix" or self.permuted or core == size
        return 4 * (size * size if dense else core * core + (size // core) ** 2 + size)

    def blocks(self, features: int) -> int:
        """n, for activations of ``features``."""
        return self.block or features


@dataclass(frozen=True)
class Application:
    """A transform at one location of the modules that match.

    Attributes:
        inverse: the inverse map is applied.
        targets, ignore: module names, ``re:`` and a regular expression from the start of the name, or class names.
    """

    transform: Transform
    location: Location
    targets: tuple[str, ...]
    inverse: bool = False
    ignore: tuple[str, ...] = ()

    @property
    def online(self) -> bool:
        return self.location in ONLINE

    @property
    def leaf(self) -> str:
        """Name of the submodule that holds its tensors, of each module that it applies to."""
        return f"{self.transform.name}_{self.location}"

    @property
    def map_key(self) -> tuple[Transform, bool]:
        """Equal for applications that use the same stored tensors."""
        return self.transform, self.inverse and self.transform.kind == "random-matrix"

    def matches(self, name: str, cls: str) -> bool:
        """Whether the module ``name`` (checkpoint naming) of class ``cls`` has it."""
        if any(_matches(target, name, cls) for target in self.ignore):
            return False
        return any(_matches(target, name, cls) for target in self.targets)

    def renamed(self, rename: Callable[[list[str]], list[str]]) -> Application:
        """With every module name among the targets replaced; expressions and classes stay."""

        def each(targets: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(new for t in targets for new in ([t] if t.startswith("re:") or "." not in t else rename([t])))

        return replace(self, targets=each(self.targets), ignore=each(self.ignore))

    def describe(self) -> str:
        """E.g. ``R4 (hadamard 128, inverse) at input``."""
        return f"{self.transform.name} ({self.transform.describe()}{', inverse' * self.inverse}) at {self.location}"

    def check_size(self, module: str, features: int) -> None:
        """Raises CheckpointError where the map is not defined for ``features``, those of the whole module."""
        size, where = self.transform.blocks(features), f"{module}: transform_config: {self.describe()}"
        if features % size:
            raise CheckpointError(f"{where} does not divide {features} features", "fix head_dim in config.json")
        if not self.transform.stored and size & (size - 1):
            raise CheckpointError(
                f"{where}: there is no Sylvester matrix of size {size}",
                "sizes are powers of two; requantize with a head_dim that is, or with random-hadamard",
            )

    def cut_refusal(self, features: int, *bounds: int) -> str | None:
        """Why a rank that holds only the features between ``bounds`` (start, stop) cannot apply it to them, or None."""
        size = self.transform.blocks(features)
        if all(bound % size == 0 for bound in bounds):
            return None
        return f"{self.describe()} mixes blocks of {size} of {features} features, and a rank holds {_range(*bounds)}"


def uncancelled(online: Iterable[Application], *, quantized_cache: bool) -> list[Application]:
    """The transforms without which a model answers otherwise.

    Queries and keys that are rotated alike have the same products: (q M) (k M)' = q k' where M M' = 1. Such a pair
    serves a quantized cache alone.
    """
    found = list(online)
    if quantized_cache:
        return found
    for query in [one for one in found if one.location == "q_attn" and one.transform.kind != "random-matrix"]:
        key = replace(query, location="k_cache")
        if key in found:
            found.remove(query)
            found.remove(key)
    return found


def refuse_unplaced(online: Iterable[Application], modules: Mapping[str, bool]) -> None:
    """See that there is a layer for every online transform: one that nothing applies would change the answers.

    Args:
        modules: each module of the checkpoint, and whether it holds a matrix; a norm does not.

    Raises:
        CheckpointError: a transform matches no module, or one that is neither a linear layer nor an attention.
    """
    parents = {name[:dot] for name in modules for dot in _dots(name)}
    for one in online:
        classes = [
            target for target in one.targets if target in ("Linear", "Embedding") or target.endswith("Attention")
        ]
        matched = [name for name in (*modules, *sorted(parents - modules.keys())) if one.matches(name, "")]
        if not matched and not classes:
            raise CheckpointError(
                f"transform_config: {one.describe()}: no module of the checkpoint is one of {', '.join(one.targets)}",
                "fix its targets in config.json",
            )
        elsewhere = [name for name in matched if not modules.get(name, False)]
        if one.location not in ATTENTION and elsewhere:
            raise CheckpointError(
                f"transform_config: {one.describe()}: {elsewhere[0]} is no linear layer",
                "requantize the model with transforms of its linear layers and attention alone",
            )


def _dots(name: str) -> Iterable[int]:
    return (place for place, letter in enumerate(name) if letter == ".")


def _range(*bounds: int) -> str:
    return f"those from {bounds[0]} to {bounds[-1]}"


def _matches(target: str, name: str, cls: str) -> bool:
    if target.startswith("re:"):
        return re.match(target.removeprefix("re:"), name) is not None
    # Modules of one kind are of many classes (LlamaAttention, Qwen3Attention); a checkpoint has one for its decoder.
    return target in (name, cls) or (cls == "Attention" and target.endswith("Attention") and "." not in target)


@dataclass(frozen=True)
class PartTransforms:
    """The online transforms of one module of the checkpoint, in the order of the config."""

    module: str
    applications: tuple[Application, ...]

    def at(self, location: Location) -> tuple[Application, ...]:
        return tuple(one for one in self.applications if one.location == location)
