"""Memory, disk and time of a run: from shapes, what its algorithm says that it costs, and the speed. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from vllm_quant_plugin.checkpoint import Checkpoint
from vllm_quant_plugin.quantize.algorithm import ROUND_SECONDS, Cost
from vllm_quant_plugin.quantize.estimate.speed import Speed, SpeedRange
from vllm_quant_plugin.quantize.modules import Linear, layer_of
from vllm_quant_plugin.quantize.recipe import Recipe

# Python, torch and the libraries before the first tensor is read, as measured with 30 % added; with and without text.
RUNTIME_BYTES = {True: 1_200_000_000, False: 400_000_000}
START_SECONDS = {True: 8.0, False: 2.0}
# Seconds per byte of input: read, hashed; and of output: spooled, copied, hashed. Measured with one core.
READ_SECONDS, WRITE_SECONDS = 1.2e-9, 3.0e-9
# By this factor a run at a known speed is often off, either way.
MODEL_ERROR = 2.0
# Tokens of a batch on its way through a layer.
_BATCH_TOKENS = 4096


def by_layer(modules: Sequence[Linear]) -> dict[str, list[Linear]]:
    """The modules of each decoder layer, by the layer's name."""
    layers: dict[str, list[Linear]] = {}
    for m in modules:
        layers.setdefault(layer_of(m.name), []).append(m)
    return layers


def layer_costs(modules: Sequence[Linear], recipe: Recipe) -> dict[str, Cost]:
    """What the recipe's algorithm says of each decoder layer; empty for a run without calibration text."""
    if recipe.calibration is None:
        return {}
    tokens = recipe.calibration.samples * recipe.calibration.seq_len
    cost = recipe.algorithm.cost
    return {name: cost(layer, tokens, recipe.options) for name, layer in by_layer(modules).items()}


def layer_memory(checkpoint: Checkpoint, prefix: str, layer: Sequence[Linear], solver_bytes: int, batch: int) -> int:
    """Bytes for a decoder layer in float32, codes and packed codes; then a solver, or a batch on its way through it.

    Args:
        solver_bytes: what the algorithm holds beside the layer.
        batch: bytes of a batch's activations.
    """
    weights = sum(prod(t.shape) for name, t in checkpoint.tensors.items() if name.startswith(f"{prefix}."))
    sizes = [m.in_features * m.out_features for m in layer]
    return 4 * weights + 2 * sum(sizes) + solver_bytes + max(5 * 4 * max(sizes), batch)


def memory_needed(checkpoint: Checkpoint, modules: Sequence[Linear], recipe: Recipe) -> int:
    """Resident bytes of a run with the builtin backend, an upper estimate."""
    if recipe.calibration is None:
        largest = max(m.in_features * m.out_features for m in modules)
        tensor = max(info.nbytes for info in checkpoint.tensors.values())
        # float32 copy, its scaled and rounded forms, codes.
        return RUNTIME_BYTES[False] + max(tensor, 18 * largest)
    # The embedding as stored and in float32, before the first layer is there.
    outside = sum(t.nbytes for n, t in checkpoint.tensors.items() if "embed" in n) * 3
    tokens = recipe.calibration.samples * recipe.calibration.seq_len
    hidden = int(checkpoint.text_config.get("hidden_size") or 0)
    batch = min(tokens, _BATCH_TOKENS) * 4 * (6 * hidden + 4 * max(m.in_features for m in modules))
    costs, layers = layer_costs(modules, recipe), by_layer(modules)
    inside = max(layer_memory(checkpoint, name, layers[name], costs[name].memory_bytes, batch) for name in layers)
    return RUNTIME_BYTES[True] + max(outside, inside) + 4 * tokens * hidden


def disk_needed(checkpoint: Checkpoint, modules: Sequence[Linear], recipe: Recipe, bytes_after: int) -> int:
    """Bytes on disk while a run is under way, an upper estimate."""
    # A shard's spool lies beside the shard while that is written.
    output = 2 * bytes_after + (32 << 20)
    if recipe.calibration is None:
        return output
    hidden = int(checkpoint.text_config.get("hidden_size") or 0)
    # Finished layers and two generations of what enters the next one.
    journal = bytes_after + 2 * 4 * recipe.calibration.samples * recipe.calibration.seq_len * hidden
    return output + journal + max(cost.spilled_bytes for cost in layer_costs(modules, recipe).values())


@dataclass(frozen=True)
class Duration:
    """Wall seconds, from ``low`` to ``high``."""

    low: float
    high: float


def estimate_seconds(
    checkpoint: Checkpoint, modules: Sequence[Linear], recipe: Recipe, bytes_after: int, speed: Speed
) -> float:
    """Wall seconds of a whole run of the builtin backend at one speed; libraries as a whole take longer.

    Args:
        modules: those that will be quantized.
        bytes_after: of the output.
    """
    weights = sum(m.in_features * m.out_features for m in modules)
    costs = layer_costs(modules, recipe).values()
    other = START_SECONDS[recipe.calibration is not None]
    other += READ_SECONDS * checkpoint.nbytes + WRITE_SECONDS * bytes_after + ROUND_SECONDS * weights
    other += sum(cost.seconds for cost in costs)
    return other * speed.slowness + sum(cost.flop for cost in costs) / speed.flops


def estimate_duration(
    checkpoint: Checkpoint, modules: Sequence[Linear], recipe: Recipe, bytes_after: int, measured: SpeedRange
) -> Duration:
    """Between which wall seconds a run lies on a machine that stays as it was when it was measured."""
    low, high = (
        estimate_seconds(checkpoint, modules, recipe, bytes_after, speed) for speed in (measured.fast, measured.slow)
    )
    return Duration(round(low / MODEL_ERROR, 1), round(high * MODEL_ERROR, 1))
