"""Bloom's and Falcon's fused rows: what vLLM's model files can reorder is served, the rest is refused by name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.support.recipes import Recipe, awq, compressed_tensors, fp8, gptq
from vllm_quant_plugin.errors import CheckpointError
from vllm_quant_plugin.formats import get_format, parse_quantization_config
from vllm_quant_plugin.loader.reordered import refuse_unordered

HEADS = 4


def check(family: str, recipe: Recipe, head_dim: int) -> None:
    size, scheme = HEADS * head_dim, recipe.scheme
    assert scheme is not None
    specs = get_format(scheme).tensors(scheme, 3 * size, size)
    tensors: dict[str, Any] = {leaf: spec for leaf, spec in specs.items() if spec.written}
    config = SimpleNamespace(architectures=[family], hidden_size=size, num_attention_heads=HEADS)
    model = parse_quantization_config(dict(recipe.config or {}))
    refuse_unordered(model, {"h.0.self_attention.query_key_value": tensors}, config)


@pytest.mark.parametrize("recipe", [gptq(4, 32), awq(4, 32), fp8()], ids=["gptq", "awq", "fp8-tensor"])
def test_bloom_takes_rows_first_only(recipe: Recipe) -> None:
    check("BloomForCausalLM", compressed_tensors("float-quantized"), 32)
    with pytest.raises(CheckpointError, match=r"h.0.self_attention.query_key_value: vLLM's model file of Bloom"):
        check("BloomForCausalLM", recipe, 32)
    check("GPTNeoXForCausalLM", recipe, 32)


@pytest.mark.parametrize(("bits", "head_dim", "whole"), [(4, 64, True), (4, 20, False), (3, 64, True), (3, 80, False)])
def test_falcon_heads_are_whole_words(bits: int, head_dim: int, whole: bool) -> None:
    """As torch's view, which Falcon uses, says: the words of all heads in (heads, -1)."""
    words = torch.empty(HEADS * head_dim * bits // 32)
    per_head = words.numel() * 32 / bits / head_dim == HEADS and not words.numel() % HEADS
    assert per_head == whole
    if whole:
        check("FalconForCausalLM", gptq(bits, -1, False), head_dim)
    else:
        with pytest.raises(CheckpointError, match="Falcon cannot reorder"):
            check("FalconForCausalLM", gptq(bits, -1, False), head_dim)
