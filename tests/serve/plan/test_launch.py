"""Real engines on CPU with pinned KV bytes: the planned blocks and tokens are the engine's."""

import json
from pathlib import Path

import pytest

from vllm_quant_plugin.architecture.placement import Placement
from vllm_quant_serve.plan.api import PlanRequest, make_plan
from vllm_quant_serve.plan.devices.resolve import resolve_devices
from vllm_quant_serve.plan.model.load import load_model
from vllm_quant_serve.plan.search.context import load_context

HERE = Path(__file__).parent
BUNDLED = Path(__file__).parents[3] / "vllm_quant_plugin" / "data" / "stdlib-llama"
PINNED = 64 << 20
SMALL = {
    "hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 256, "vocab_size": 512,
    "max_position_embeddings": 1024,
}  # fmt: skip
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128}
_THREE = {"layer_types": (["sliding_attention"] * 2 + ["full_attention"]) * 2, "sliding_window": 128}
# Real configurations cut down to engine-test size: the common families, and one for each kind of cache.
ENGINES = {
    "llama-3.2-1b": {"num_hidden_layers": 2, "head_dim": 64},
    "mistral-7b-v0.1": {"num_hidden_layers": 2, "sliding_window": 128},
    "qwen2-0.5b": {"num_hidden_layers": 2},
    "qwen3-0.6b": {"num_hidden_layers": 2, "head_dim": 64},
    "mixtral-8x7b": {"num_hidden_layers": 2, "num_local_experts": 4},
    "qwen3-30b-a3b": {"num_hidden_layers": 2, "head_dim": 64, **_EXPERTS},
    "gemma-2-9b": {"num_hidden_layers": 6, "head_dim": 64, "sliding_window": 128, "query_pre_attn_scalar": 64},
    "gemma-3-1b": {"num_hidden_layers": 6, "head_dim": 64, "sliding_window": 128, "query_pre_attn_scalar": 64},
    "gemma-3n-e2b-text": {"num_hidden_layers": 6, "intermediate_size": [256] * 6, "head_dim": 64, **_THREE,
                          "activation_sparsity_pattern": [0.0] * 6, "num_kv_shared_layers": 2,
                          "hidden_size_per_layer_input": 64, "vocab_size_per_layer_input": 512},
    "gemma-4-e2b-text": {"num_hidden_layers": 6, "head_dim": 64, "global_head_dim": 64, "num_kv_shared_layers": 3,
                         **_THREE, "hidden_size_per_layer_input": 64, "vocab_size_per_layer_input": 512},
    "llama-4-scout-text": {"num_hidden_layers": 4, "head_dim": 64, "num_local_experts": 4, "intermediate_size_mlp": 256,
                           "attention_chunk_size": 128, "no_rope_layers": [1, 1, 1, 0]},
    "deepseek-v2-lite": {"num_hidden_layers": 3, "num_key_value_heads": 4, "moe_intermediate_size": 128,
                         "n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "falcon-h1-0.5b": {"num_hidden_layers": 4, "head_dim": 64, "mamba_d_ssm": 512, "mamba_n_heads": 8},
    "granite-4.0-h-tiny": {"num_hidden_layers": 6, "intermediate_size": 128, "mamba_n_heads": 8, "num_local_experts": 4,
                           "num_experts_per_tok": 2, "shared_intermediate_size": 128,
                           "layer_types": ["mamba", "mamba", "attention"] * 2},
    "nemotron-h-8b": {"num_hidden_layers": 4, "hybrid_override_pattern": "M*M-", "mamba_num_heads": 8, "head_dim": 64},
    "zamba2-1.2b": {"num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid"] * 2, "hybrid_layer_ids": [1, 3],
                    "n_mamba_heads": 8, "num_key_value_heads": 4},
    "jamba-v0.1": {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 4,
                   "mamba_dt_rank": 16},
    "mamba2-2.7b": {"num_hidden_layers": 2, "num_heads": 8, "head_dim": 64},
    "falcon-mamba-7b": {"num_hidden_layers": 2, "time_step_rank": 16, "intermediate_size": 512},
    "lfm2-1.2b": {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2, "block_ff_dim": 256,
                  "conv_dim": 256},
    "qwen3-next-80b-a3b": {"num_hidden_layers": 4, "head_dim": 64, **_EXPERTS, "shared_expert_intermediate_size": 128,
                           "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 64,
                           "linear_value_head_dim": 64},
}  # fmt: skip


@pytest.mark.engine
@pytest.mark.parametrize("name", ["bundled", *ENGINES])
def test_planned_tokens_are_the_engines(name, tmp_path):
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    folder, extra = str(BUNDLED), {}
    if name != "bundled":
        config = {**json.loads((HERE / "configs" / f"{name}.json").read_text()), **SMALL, **ENGINES[name]}
        (tmp_path / "config.json").write_text(json.dumps(config))
        folder, extra = str(tmp_path), {"load_format": "dummy", "skip_tokenizer_init": True}
    common = {"max_model_len": 512, "max_num_batched_tokens": 1024}
    plan = make_plan(PlanRequest(folder, cpu=True, kv_cache_memory=PINNED, **common))
    llm = LLM(folder, enforce_eager=True, kv_cache_memory_bytes=PINNED, **common, **extra)
    try:
        cache = llm.llm_engine.vllm_config.cache_config
        assert plan.kv_blocks == cache.num_gpu_blocks
        assert plan.kv_tokens.value == cache.kv_cache_size_tokens
        assert plan.max_concurrency == pytest.approx(cache.kv_cache_max_concurrency, abs=0.01)
    finally:
        del llm
        cleanup_dist_env_and_memory()


@pytest.mark.engine
def test_planned_weights_are_what_the_plugin_holds():
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    request = PlanRequest(str(BUNDLED), cpu=True, quantization="vqp_int8", kv_cache_memory=PINNED, max_model_len=512)
    context = load_context(request, load_model(request), resolve_devices(request))
    planned = context.weights.weights(Placement()).parameters[0]
    llm = LLM(
        str(BUNDLED), quantization="vqp_int8", enforce_eager=True, kv_cache_memory_bytes=PINNED, max_model_len=512
    )
    try:
        (held,) = llm.apply_model(lambda model: sum(p.numel() * p.element_size() for p in model.parameters()))
        assert planned == held
    finally:
        del llm
        cleanup_dist_env_and_memory()
