"""Which tensors of a checkpoint are linear weights to quantize, from the headers. No torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass

from vllm_quant_plugin.checkpoint import Checkpoint, TensorInfo
from vllm_quant_plugin.errors import CheckpointError, UsageError
from vllm_quant_plugin.formats.fused import siblings
from vllm_quant_plugin.quantize.io.storage import alignment_problem
from vllm_quant_plugin.schemes import StoredScheme

_LAYER = re.compile(r"(^|\.)(layers|h|blocks|decoder_layers)\.\d+\.")
# Towers and heads that vLLM runs in 16 bits, and small projections that decide, not transform.
_KEPT = re.compile(
    r"(^|\.)(visual|vision_\w+|vision|audio_\w+|mtp|embed\w*|lm_head|router|(shared_expert_)?gate|conv1d)(\.|$)"
)
# Second moments of experts' inputs that are held at a time; one is held whatever its size.
MOMENT_BYTES = 1 << 30
# From this size on the matrix that GPTQ works on is spilled to disk, not copied.
SPILL_BYTES = 1 << 29
FLOAT_DTYPES = ("BF16", "F16", "F32")


@dataclass(frozen=True)
class Linear:
    """One linear module of the checkpoint.

    Attributes:
        name: module name, without ``.weight``.
        weight: its weight as stored, (out_features, in_features).
    """

    name: str
    weight: TensorInfo

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    @property
    def in_features(self) -> int:
        return self.weight.shape[1]


@dataclass(frozen=True)
class QuantizedLinear(Linear):
    """A linear module and what it becomes."""

    scheme: StoredScheme


def _matrices(checkpoint: Checkpoint) -> Iterator[Linear]:
    for name, info in sorted(checkpoint.tensors.items()):
        if name.endswith(".weight") and len(info.shape) == 2 and info.dtype in FLOAT_DTYPES:
            yield Linear(name.removesuffix(".weight"), info)


def linear_modules(checkpoint: Checkpoint) -> list[Linear]:
    """The linear modules inside the decoder layers, by name."""
    return [m for m in _matrices(checkpoint) if _LAYER.search(m.name) and not _KEPT.search(m.name)]


def kept_modules(checkpoint: Checkpoint, chosen: Container[str]) -> list[str]:
    """Matrices outside ``chosen`` that vLLM may build as a linear module: heads, routers, towers."""
    kept = [m.name for m in _matrices(checkpoint) if m.name not in chosen and "embed_tokens" not in m.name]
    return sorted({"lm_head", *kept})


def layer_of(module: str) -> str:
    """Name of the decoder layer that a module is in: up to its first number."""
    parts = module.split(".")
    return ".".join(parts[: next(i for i, part in enumerate(parts) if part.isdigit()) + 1])


def moment_sizes(layer: Sequence[Linear]) -> list[int]:
    """Bytes of the second moments (K, K) in float32, one for each input of a decoder layer."""
    return list({siblings(m.name): 4 * m.in_features**2 for m in layer}.values())


def check_input(checkpoint: Checkpoint) -> list[Linear]:
    """The modules to quantize of an unquantized model.

    Raises:
        CheckpointError: already quantized, or no linear weights in decoder layers.
    """
    if checkpoint.quantization_config:
        method = checkpoint.quantization_config.get("quant_method", "unknown")
        raise CheckpointError(
            f"{checkpoint.path}: already quantized ({method})", "start from the 16-bit model it was made of"
        )
    found = linear_modules(checkpoint)
    if not found:
        raise CheckpointError(
            f"{checkpoint.path}: no linear weights in decoder layers", "this command quantizes decoder-only models"
        )
    return found


def check_schemes(modules: Sequence[Linear], scheme_for: Callable[[str], StoredScheme | None]) -> list[QuantizedLinear]:
    """The modules that get a scheme; refuses one that a module's shape cannot hold, or that vLLM cannot fuse.

    Raises:
        UsageError: naming the first such module and what would fit.
    """
    chosen = {m.name: scheme for m in modules if (scheme := scheme_for(m.name)) is not None}
    known = {m.name for m in modules}
    for name in sorted(known):
        other = next((s for s in siblings(name) if s in known and chosen.get(s) != chosen.get(name)), None)
        if other is not None:
            raise UsageError(
                f"{name} and {other} have different schemes", "vLLM loads them as one matrix; give both the same"
            )
    if not chosen:
        raise UsageError("the recipe leaves every module in 16 bits", "give some module 8 bits or fewer")
    found = [QuantizedLinear(m.name, m.weight, chosen[m.name]) for m in modules if m.name in chosen]
    for module in found:
        scheme, n, k = module.scheme, module.out_features, module.in_features
        if scheme.block is None and k % scheme.group_of(k):
            sizes = [g for g in (32, 64, 128, 256) if all(m.in_features % g == 0 for m in modules)]
            fits = ", ".join(map(str, [*sizes, -1]))
            raise UsageError(
                f"group size {scheme.group_size} does not divide the {k} input features of {module.name}",
                f"--group-size of {fits} fits every module",
            )
        problem = alignment_problem(scheme, n, k)
        if problem:
            raise UsageError(f"{module.name}: {problem}", "use -m rtn, int8 or fp8 for this model")
    return found
