"""Rows that vLLM's model files reorder: what vLLM's model files can reorder is served, the rest is refused by name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.support.recipes import Recipe, awq, compressed_tensors, fp8, gptq, packed
from vllm_quant_plugin.errors import CheckpointError
from vllm_quant_plugin.formats import get_format, parse_quantization_config
from vllm_quant_plugin.loader.reordered import refuse_unordered

HEADS = 4


def check(family: str, recipe: Recipe, head_dim: int, module: str = "self_attention.query_key_value") -> None:
    size, scheme = HEADS * head_dim, recipe.scheme
    assert scheme is not None
    specs = get_format(scheme).tensors(scheme, 3 * size, size)
    tensors: dict[str, Any] = {leaf: spec for leaf, spec in specs.items() if spec.written}
    config = SimpleNamespace(architectures=[family], hidden_size=size, num_attention_heads=HEADS)
    model = parse_quantization_config(dict(recipe.config or {}))
    refuse_unordered(model, {f"h.0.{module}": tensors}, config)


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
        with pytest.raises(CheckpointError, match="FalconForCausalLM cannot reorder"):
            check("FalconForCausalLM", gptq(bits, -1, False), head_dim)


LLAMA_4 = {
    "gptq": (gptq(4, 32), False),
    "awq": (awq(4, 32), False),
    "packed": (packed(4, 32), True),
    "packed-asymmetric": (packed(4, 32, sym=False), False),
    "fp8-channel": (compressed_tensors("float-quantized"), True),
    "fp8-tensor": (fp8(), True),
    "fp8-block": (fp8(block=(128, 128)), False),
}


@pytest.mark.parametrize("name", LLAMA_4)
@pytest.mark.parametrize("module", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"])
def test_llama_4_reorders_tensors_of_some_names_only(name: str, module: str) -> None:
    """permute_qk_weight_for_rotary: weight, weight_packed, weight_scale of q and k, one row per feature."""
    recipe, served = LLAMA_4[name]
    if served or "v_proj" in module:
        check("Llama4ForConditionalGeneration", recipe, 32, module)
    else:
        with pytest.raises(CheckpointError, match=f"{module}: vLLM's model file of Llama4ForConditionalGeneration"):
            check("Llama4ForConditionalGeneration", recipe, 32, module)
