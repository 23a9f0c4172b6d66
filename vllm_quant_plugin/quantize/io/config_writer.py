"""``quantization_config`` of a quantized model, in its format's standard form. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vllm_quant_plugin.checkpoint import Checkpoint
from vllm_quant_plugin.formats import Provenance, get_format
from vllm_quant_plugin.quantize.modules import QuantizedLinear, kept_modules

if TYPE_CHECKING:
    from vllm_quant_plugin.quantize.recipe import Recipe


def config_for(
    recipe: Recipe, checkpoint: Checkpoint, modules: Sequence[QuantizedLinear], quantizer: str
) -> dict[str, Any]:
    """``quantization_config`` of ``checkpoint`` with ``modules`` quantized by ``recipe``.

    Args:
        quantizer: ``name:version`` of what made the codes.
    """
    schemes = {m.name: m.scheme for m in modules}
    return get_format(recipe.scheme).write_config(
        schemes, recipe.scheme, kept_modules(checkpoint, schemes), kv_cache=recipe.kv_cache,
        provenance=Provenance(quantizer, recipe.algorithm.provenance(recipe.options)),
    )  # fmt: skip
