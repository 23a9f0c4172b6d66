"""Mixtures of experts through the layer loop: the same function, every expert quantized, coverage reported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vllm_quant_plugin.checkpoint import read_checkpoint
from vllm_quant_plugin.formats import get_format, parse_quantization_config
from vllm_quant_plugin.quantize.api import make_recipe, quantize_model
from vllm_quant_plugin.quantize.engine.layered_model import LayeredModel, run_layer
from vllm_quant_plugin.quantize.io.report import describe_coverage
from vllm_quant_plugin.quantize.io.shards import read_tensor
from vllm_quant_plugin.quantize.modules import linear_modules
from vllm_quant_plugin.text.windows import BUNDLED

H, M, EXPERTS, LAYERS, VOCAB = 64, 96, 6, 2, 4096
FAMILIES = {
    "mixtral": ("MixtralForCausalLM", "block_sparse_moe", ("w1", "w3", "w2"), {"num_local_experts": EXPERTS}),
    "qwen3_moe": (
        "Qwen3MoeForCausalLM", "mlp", ("gate_proj", "up_proj", "down_proj"),
        {"num_experts": EXPERTS, "moe_intermediate_size": M, "decoder_sparse_step": 1, "norm_topk_prob": True,
         "mlp_only_layers": []},
    ),
}  # fmt: skip


def _write(folder: Path, family: str, idle: tuple[int, ...] = (4, 5)) -> Path:
    """A random mixture of experts whose router never chooses the ``idle`` ones."""
    architecture, block, (gate, up, down), fields = FAMILIES[family]
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(BUNDLED / name, folder / name)
    config = {
        "architectures": [architecture], "model_type": family, "hidden_size": H, "intermediate_size": M,
        "num_hidden_layers": LAYERS, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
        "vocab_size": VOCAB, "num_experts_per_tok": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "hidden_act": "silu", "dtype": "float32", "tie_word_embeddings": False, **fields,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(0)

    def weight(n: int, k: int) -> torch.Tensor:
        return torch.randn(n, k, generator=generator) / k**0.5

    tensors = {"model.embed_tokens.weight": weight(VOCAB, H), "lm_head.weight": weight(VOCAB, H)}
    tensors["model.norm.weight"] = torch.ones(H)
    # What every token has in common, by which the router refuses an expert to all of them.
    tensors["model.embed_tokens.weight"][:, 0] = 5
    for layer in range(LAYERS):
        stem = f"model.layers.{layer}"
        for name, rows in (("q_proj", H), ("k_proj", 32), ("v_proj", 32), ("o_proj", H)):
            tensors[f"{stem}.self_attn.{name}.weight"] = weight(rows, H)
        for name in ("q_norm", "k_norm") if family == "qwen3_moe" else ():
            tensors[f"{stem}.self_attn.{name}.weight"] = torch.ones(32)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{stem}.{name}.weight"] = torch.ones(H)
        router = weight(EXPERTS, H)
        router[:, 0] = 0
        router[list(idle), 0] = -50
        tensors[f"{stem}.{block}.gate.weight"] = router
        for expert in range(EXPERTS):
            for name, n, k in ((gate, M, H), (up, M, H), (down, H, M)):
                tensors[f"{stem}.{block}.experts.{expert}.{name}.weight"] = weight(n, k)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_separate_experts_are_the_same_function(family: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = _write(tmp_path / "model", family)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = torch.randint(0, VOCAB, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = reference.model(tokens, output_hidden_states=True).hidden_states
    model = LayeredModel(read_checkpoint(folder), torch.device("cpu"))
    (hidden,), kwargs = model.embed(tokens.tolist())
    for index in range(LAYERS):
        with model.layer(index) as layer:
            names = {n for n, _ in layer.named_parameters()}
            assert {f"model.layers.{index}.{n}" for n in names} == set(model.layer_tensors(index))
            hidden = run_layer(layer, hidden, kwargs[index])
        if index + 1 < LAYERS:
            torch.testing.assert_close(hidden, expected[index + 1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["gptq", "awq", "int8"])
def test_every_expert_is_quantized_and_coverage_is_reported(
    family: str, method: str, short_text: str, tmp_path: Path
) -> None:
    folder = _write(tmp_path / "model", family)
    options = {"activations": "static"} if method == "int8" else {"level": "4bit-32g"}
    recipe = make_recipe(method, **options, samples=4, seq_len=32, calibration=short_text)
    report = quantize_model(folder, tmp_path / "out", recipe)
    made = read_checkpoint(tmp_path / "out")
    model = parse_quantization_config(made.quantization_config)
    modules = linear_modules(read_checkpoint(folder))
    assert len(modules) == LAYERS * (4 + 3 * EXPERTS)
    coverage = report.calibration["coverage"]
    for module in modules:
        scheme = model.scheme_for(module.name)
        names = [n for n in made.tensors if n.rpartition(".")[0] == module.name]
        tensors = {n.rpartition(".")[2]: read_tensor(made, n) for n in names}
        layout, shape = get_format(scheme), (module.out_features, module.in_features)
        layout.validate(module.name, tensors, scheme, *shape)
        weight = layout.unpack(tensors, scheme, *shape).validate().dequantize()
        original = read_tensor(read_checkpoint(folder), f"{module.name}.weight")
        near = float((weight - original).norm() / original.norm())
        # Folded weights are others; those of experts that saw nothing are rounded, not lost.
        assert method != "gptq" or near < 0.35, module.name
        if module.name in coverage["unseen"]:
            assert near < 0.15, module.name
    used, total = coverage["unused_experts"]
    assert total == LAYERS * EXPERTS
    assert used == len({n.rpartition(".")[0] for n in coverage["unseen"]})
    assert used >= LAYERS * 2
    assert any(f"{used} of {total} experts" in note for note in report.warnings)
    assert coverage["tokens"] == 4 * 32


def test_coverage_report() -> None:
    seen = {"l.0.experts.0.w1": 500, "l.0.experts.1.w1": 0, "l.0.experts.1.w2": 0, "l.0.q_proj": 900, "l.0.o_proj": 0,
            "l.0.v_proj": 12}  # fmt: skip
    report, notes = describe_coverage(seen, 1000)
    assert report == {
        "tokens": 1000, "unseen": ["l.0.experts.1.w1", "l.0.experts.1.w2", "l.0.o_proj"], "scarce": ["l.0.v_proj"],
        "unused_experts": [1, 2],
    }  # fmt: skip
    assert len(notes) == 3
    assert describe_coverage({"l.0.q_proj": 64}, 64) == ({"tokens": 64, "unseen": [], "scarce": []}, [])
