"""Some of vLLM's families, which differ in how their model files load: rows to reorder, latent
attention, a recurrent state, experts in one tensor, routers.

All families and all methods: ``make test-families``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.run_family import run

pytestmark = pytest.mark.engine

FAMILIES = {
    "BloomForCausalLM": "fp8 stored",
    "DeepseekV3ForCausalLM": "gptq",
    "FalconForCausalLM": "awq",
    "Gemma3ForCausalLM": "awq",
    "GraniteMoeForCausalLM": "fp8 stored",
    "Llama4ForCausalLM": "fp8 stored",
    "MixtralForCausalLM": "gptq",
    "NemotronHForCausalLM": "gptq",
    "Phi3ForCausalLM": "awq",
    "Qwen2MoeForCausalLM": "gptq",
    "Qwen3MoeForCausalLM": "fp8 stored",
    "Qwen3NextForCausalLM": "gptq",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_family_is_served_right(family: str, tmp_path: Path) -> None:
    """While loading, in INT8 with 16-bit activations, and from a stored checkpoint."""
    stored = FAMILIES[family]
    rows = list(run(family, tmp_path, [stored]))
    assert [(row["method"], row["result"]) for row in rows] == [("int8 online", "right"), (stored, "right")], rows
