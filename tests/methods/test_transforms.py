"""Checkpoints with transforms answer as the compressed-tensors library does, which made them, in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.engines import ask_engine, engine
from tests.support.oracle import judge
from tests.support.recipes import Recipe, compressed_tensors
from tests.support.tiny_models import HEAD_DIM, HIDDEN, tiny_model
from tests.support.transformed import group, write_transformed
from vllm_quant_kernels.scheme import Int
from vllm_quant_plugin.formats.compressed_tensors import PACK_QUANTIZED
from vllm_quant_plugin.formats.compressed_tensors.config import write
from vllm_quant_plugin.schemes import StoredScheme

pytestmark = pytest.mark.engine

R4 = group("hadamard", ("input", False, "re:.*down_proj$"), ("weight_input", True, "re:.*down_proj$"))
# SpinQuant's, and what else there is: every location, every kind, parts of fused layers apart.
EVERYWHERE = {
    "R3": group("random-hadamard", ("q_attn", False, "re:.*self_attn$"), ("k_cache", False, "re:.*self_attn$"),
                head_dim=HEAD_DIM),
    "R4": R4,
    "keys": group("hadamard", ("k_cache", False, "LlamaAttention"), head_dim=16, randomize=True),
    "values": group("random-hadamard", ("output", True, "re:.*v_proj$"), ("weight_output", False, "re:.*v_proj$"),
                    head_dim=HEAD_DIM),
    "heads": group("hadamard", ("input", False, "re:.*o_proj$"), ("weight_input", True, "re:.*o_proj$"), head_dim=32,
                   randomize=True),
    "gate": group("random-matrix", ("input", False, "model.layers.0.mlp.gate_proj"), head_dim=8),
    "whole": group("random-hadamard", ("output", False, "re:.*(up|q)_proj$"), ("weight_output", True, "re:.*up_proj$")),
    "embed": group("random-hadamard", ("output", False, "Embedding")),
    "head": group("random-hadamard", ("input", True, "lm_head"), precision="torch.float32"),
    "second": group("random-matrix", ("input", True, "re:.*down_proj$"), head_dim=4),
}  # fmt: skip
BIASES = {
    "in": group("random-hadamard", ("input", False, "re:.*self_attn.[qkv]_proj$"),
                ("weight_input", True, "re:.*self_attn.[qkv]_proj$"), head_dim=HIDDEN // 2),
    "out": group("hadamard", ("output", True, "Linear"), ("weight_output", False, "Linear"), head_dim=64),
}  # fmt: skip
BIASES["out"]["apply"][0]["ignore"] = BIASES["out"]["apply"][1]["ignore"] = ["lm_head", "re:.*gate_proj"]


SCHEME = StoredScheme(Int(4), 64, storage=PACK_QUANTIZED)
PACKED = Recipe(write([(SCHEME, ["Linear"])], ["lm_head"]), SCHEME)


@pytest.mark.parametrize(
    ("architecture", "groups", "recipe", "method"),
    [
        ("llama", EVERYWHERE, compressed_tensors("int-quantized"), "VqpInt8Config"),
        ("qwen2", BIASES, PACKED, "VqpCompressedTensorsConfig"),
        ("llama-tied", {"R4": R4, "head": EVERYWHERE["head"]}, None, "VqpCompressedTensorsConfig"),
    ],
    ids=["everywhere", "biases", "16-bit"],
)
def test_answers_as_the_library(
    architecture: str, groups: dict[str, Any], recipe: Recipe | None, method: str, tmp_path: Path
) -> None:
    written = write_transformed(tmp_path, tiny_model(architecture), groups, recipe)
    with engine(written.folder) as llm:
        assert type(llm.llm_engine.vllm_config.quant_config).__name__ == method
        got = ask_engine(llm)
    verdict = judge(got, written.answer(got.tokens))
    assert verdict.clean == 1, verdict
    assert verdict.same_choice
