"""Which candidate schemes there are, what they cost, and which of them each unit gets. No torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vllm_quant_kernels.scheme import Int
from vllm_quant_plugin.errors import UsageError
from vllm_quant_plugin.formats import get_format
from vllm_quant_plugin.formats.fused import siblings
from vllm_quant_plugin.quantize.algorithm import algorithms
from vllm_quant_plugin.quantize.io.storage import MODEL_DTYPES
from vllm_quant_plugin.quantize.mixed.recipe_file import mixed_scheme
from vllm_quant_plugin.quantize.mixed.solver import Solution, solve
from vllm_quant_plugin.quantize.modules import Linear
from vllm_quant_plugin.quantize.recipe import Recipe
from vllm_quant_plugin.schemes import StoredScheme
from vllm_quant_plugin.sizes import format_size

GROUP_SIZES = (32, 64, 128)


def candidate_schemes(
    recipe: Recipe, units: Sequence[Unit], group_sizes: Sequence[int] | None = None
) -> list[StoredScheme]:
    """Every scheme that a unit may get, by growing bits and falling group size.

    Args:
        group_sizes: None for 32, 64 and 128; what does not divide every module's input is left out.

    Raises:
        UsageError: the method has one bit-width only, or no group size fits.
    """
    bits = recipe.algorithm.mixed_bits
    if not bits:
        able = [a.name for a in algorithms() if a.mixed_bits]
        raise UsageError(f"{recipe.method} has one bit-width", f"a target needs -m {' or '.join(able)}")
    base = mixed_scheme(recipe)
    wanted = sorted(group_sizes or GROUP_SIZES, reverse=True)
    inputs = {m.in_features for unit in units for m in unit.modules}
    fitting = [g for g in wanted if g == -1 or all(k % g == 0 for k in inputs)]
    if not fitting:
        raise UsageError(f"no group size of {wanted} divides every module's input", "give --group-size")
    return [replace(base, value=Int(b), group_size=g) for b in bits for g in fitting]


@dataclass(frozen=True)
class Allocation:
    """What the search found.

    Attributes:
        schemes: by module; None for 16 bits.
        solution: of the knapsack problem over units.
        uniform: the best scheme of all modules alike that fits the budget, None when none does.
        uniform_loss, uniform_cost: its predicted KL and bytes.
    """

    schemes: dict[str, StoredScheme | None]
    solution: Solution
    uniform: StoredScheme | None
    uniform_loss: float
    uniform_cost: int


def budget_bytes(units: Sequence[Unit], total_bytes: int, bits_per_weight: float | None, size: int | None) -> int:
    """Bytes that the quantized modules may take.

    Args:
        total_bytes: of all tensors of the input.
        bits_per_weight: with scales and zero points; or
        size: of all tensors of the output.
    """
    if (bits_per_weight is None) == (size is None):
        raise UsageError("a target is --target-bpw or --target-size", "give one of the two")
    if bits_per_weight is not None:
        if not 0 < bits_per_weight <= 16:
            raise UsageError(f"--target-bpw {bits_per_weight:g} is out of range", "it lies between 2 and 16")
        return int(bits_per_weight * sum(u.weights for u in units) / 8)
    assert size is not None
    return size - (total_bytes - sum(u.stored_bytes(None) for u in units))


def require_feasible(units: Sequence[Unit], candidates: Sequence[StoredScheme], budget: int) -> None:
    """Refuse a budget that even the smallest candidates exceed.

    Raises:
        UsageError: with the least bits per weight there are.
    """
    least = sum(min(u.stored_bytes(c) for c in candidates) for u in units)
    if least > budget:
        bits = 8 * least / sum(u.weights for u in units)
        raise UsageError(
            f"the target leaves {format_size(budget)} for the modules to quantize, which need {format_size(least)}",
            f"--target-bpw {bits:.2f} is the smallest that this method stores",
        )


def allocate(
    units: Sequence[Unit], candidates: Sequence[StoredScheme], losses: Sequence[Sequence[float]], budget: int
) -> Allocation:
    """The schemes with the least total loss within the budget; 16 bits, without loss, are an option as well."""
    options: list[StoredScheme | None] = [*candidates, None]
    costs = [[u.stored_bytes(option) for option in options] for u in units]
    found = solve(costs, [[*row, 0.0] for row in losses], budget)
    assert found is not None
    schemes = {m.name: options[c] for unit, c in zip(units, found.choice, strict=True) for m in unit.modules}
    uniform: tuple[float, int, StoredScheme] | None = None
    for c, scheme in enumerate(candidates):
        cost = sum(row[c] for row in costs)
        loss = sum(row[c] for row in losses)
        if cost <= budget and (uniform is None or loss < uniform[0]):
            uniform = (loss, cost, scheme)
    loss, cost, chosen = uniform if uniform else (float("inf"), 0, None)
    return Allocation(schemes, found, chosen, loss, cost)


# All experts of a layer are one fused module.
_EXPERTS = re.compile(r"^(.*\.experts)\.\d+\.")


@dataclass(frozen=True)
class Unit:
    """Modules that share a scheme.

    Attributes:
        name: of the first module, or of the layer's experts.
    """

    name: str
    modules: tuple[Linear, ...]

    @property
    def weights(self) -> int:
        return sum(m.in_features * m.out_features for m in self.modules)

    def stored_bytes(self, scheme: StoredScheme | None) -> int:
        """Bytes of all tensors of the unit's modules in ``scheme``; as they are for None."""
        if scheme is None:
            return sum(m.weight.nbytes for m in self.modules)
        stored = get_format(scheme).stored_bytes
        return sum(stored(scheme, m.out_features, m.in_features, MODEL_DTYPES[m.weight.dtype]) for m in self.modules)


def find_units(modules: Sequence[Linear]) -> list[Unit]:
    """The units of a model in the order of its modules."""
    found: dict[str, list[Linear]] = {}
    for module in modules:
        experts = _EXPERTS.match(module.name)
        found.setdefault(experts[1] if experts else siblings(module.name)[0], []).append(module)
    return [Unit(name, tuple(members)) for name, members in found.items()]
