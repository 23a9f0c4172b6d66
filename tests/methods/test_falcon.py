"""Falcon with grouped KV heads: its model file puts the fused query_key_value in vLLM's order, if it learns which
dimension of a stored tensor holds the output features.

The checkpoint has q, k and v per KV head: (q, q, k, v) twice here. vLLM wants all of q, then k, then v.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.engines import ask
from tests.support.oracle import judge
from tests.support.quantized_checkpoints import write_checkpoint
from tests.support.recipes import Recipe, awq, compressed_tensors, fp8, gptq, online_int8
from tests.support.tiny_models import HEADS, HIDDEN, KV_HEADS, LAYERS, VOCAB, TinyModel

pytestmark = pytest.mark.engine

HEAD_DIM = HIDDEN // HEADS
FALCON = {
    "architectures": ["FalconForCausalLM"], "model_type": "falcon", "hidden_size": HIDDEN, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "num_kv_heads": KV_HEADS, "vocab_size": VOCAB, "new_decoder_architecture": True,
    "multi_query": True, "parallel_attn": True, "bias": False, "alibi": False, "layer_norm_epsilon": 1e-5,
    "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32", "tie_word_embeddings": True,
    "max_position_embeddings": 256, "rope_theta": 10000.0, "ffn_hidden_size": 4 * HIDDEN,
}  # fmt: skip
RECIPES: dict[str, tuple[str, Recipe]] = {
    "gptq-3bit": ("vqp_gptq", gptq(3, 64, False)),
    "awq": ("vqp_awq", awq(4, 128)),
    "fp8-tensor": ("vqp_fp8", fp8()),
    "int8-channel": ("vqp_int8", compressed_tensors("int-quantized")),
    "int8-group": ("vqp_int8", compressed_tensors("int-quantized", 64, sym=False)),
    "online": ("vqp_int8", online_int8("none")),
}


def falcon() -> TinyModel:
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, torch.Tensor] = {"transformer.word_embeddings.weight": torch.randn(VOCAB, HIDDEN) / 16}
    linears: list[str] = []

    def norm(name: str) -> None:
        tensors[f"{name}.weight"] = 1 + 0.1 * torch.randn(HIDDEN, generator=generator)
        tensors[f"{name}.bias"] = 0.1 * torch.randn(HIDDEN, generator=generator)

    for i in range(LAYERS):
        stem = f"transformer.h.{i}"
        for name, n, k in (
            ("self_attention.query_key_value", (HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN),
            ("self_attention.dense", HIDDEN, HIDDEN),
            ("mlp.dense_h_to_4h", 4 * HIDDEN, HIDDEN),
            ("mlp.dense_4h_to_h", HIDDEN, 4 * HIDDEN),
        ):
            tensors[f"{stem}.{name}.weight"] = torch.randn(n, k, generator=generator) / k**0.5
            linears.append(f"{stem}.{name}")
        norm(f"{stem}.ln_attn")
        norm(f"{stem}.ln_mlp")
    norm("transformer.ln_f")
    return TinyModel(FALCON, tensors, tuple(linears))


@pytest.mark.parametrize("name", RECIPES)
def test_fused_rows_are_put_in_order(name: str, tmp_path: Path) -> None:
    method, recipe = RECIPES[name]
    written = write_checkpoint(tmp_path, falcon(), recipe)
    options = {"quant_method": method, **recipe.online_options}
    overrides = {"hf_overrides": {"quantization_config": options}} if recipe.online_options else {}
    got = ask(written.folder, quantization=method, **overrides)
    verdict = judge(got, reference := ask(written.reference))
    assert got.tokens == reference.tokens
    assert verdict.clean == 1
