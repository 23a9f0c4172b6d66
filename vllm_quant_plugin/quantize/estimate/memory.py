"""How much memory a run needs, by count: from shapes alone. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from vllm_quant_plugin.checkpoint import Checkpoint
from vllm_quant_plugin.quantize.modules import MOMENT_BYTES, SPILL_BYTES, Linear, layer_of, siblings
from vllm_quant_plugin.quantize.recipe import Recipe

# Python, torch and the libraries before the first tensor is read, as measured with 30 % added.
_RUNTIME_BYTES = {True: 1_200_000_000, False: 400_000_000}


def _moments(layer: Sequence[Linear]) -> list[int]:
    """Bytes of the second moments (K, K) in float32, one for each input of a decoder layer."""
    return list({siblings(m.name): 4 * m.in_features**2 for m in layer}.values())


def spilled_bytes(modules: Sequence[Linear], method: str) -> int:
    """The largest moment that GPTQ saves in a file while it works in its memory."""
    return max((b for b in _moments(modules) if b >= SPILL_BYTES), default=0) if method == "gptq" else 0


def _moment_bytes(layer: Sequence[Linear], method: str) -> int:
    """Moments that are held at a time for a decoder layer, and the one that a solver works on."""
    moments = _moments(layer)
    if method == "awq":
        # All inputs of a layer are measured in one pass.
        return sum(moments) + max(moments)
    if method == "gptq":
        copied = max((b for b in moments if b < SPILL_BYTES), default=0)
        return max(min(sum(moments), MOMENT_BYTES) + copied, max(moments))
    return 0


def layer_memory(checkpoint: Checkpoint, prefix: str, layer: Sequence[Linear], method: str, batch: int) -> int:
    """A decoder layer in float32, codes and packed codes; then a solver, or a batch on its way through the layer."""
    weights = sum(prod(t.shape) for name, t in checkpoint.tensors.items() if name.startswith(f"{prefix}."))
    sizes = [m.in_features * m.out_features for m in layer]
    return 4 * weights + 2 * sum(sizes) + _moment_bytes(layer, method) + max(5 * 4 * max(sizes), batch)


def memory_needed(checkpoint: Checkpoint, modules: Sequence[Linear], recipe: Recipe) -> int:
    """Resident bytes of a run with the builtin backend, an upper estimate."""
    if recipe.calibration is None:
        largest = max(m.in_features * m.out_features for m in modules)
        tensor = max(info.nbytes for info in checkpoint.tensors.values())
        # float32 copy, its scaled and rounded forms, codes.
        return _RUNTIME_BYTES[False] + max(tensor, 18 * largest)
    layers: dict[str, list[Linear]] = {}
    for m in modules:
        layers.setdefault(layer_of(m.name), []).append(m)
    # The embedding as stored and in float32, before the first layer is there.
    outside = sum(t.nbytes for n, t in checkpoint.tensors.items() if "embed" in n) * 3
    tokens = recipe.calibration.samples * recipe.calibration.seq_len
    hidden = int(checkpoint.text_config.get("hidden_size") or 0)
    batch = min(tokens, 4096) * 4 * (6 * hidden + 4 * max(m.in_features for m in modules))
    inside = max(layer_memory(checkpoint, name, layer, recipe.method, batch) for name, layer in layers.items())
    return _RUNTIME_BYTES[True] + max(outside, inside) + 4 * tokens * hidden
