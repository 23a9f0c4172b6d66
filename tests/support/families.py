"""Tiny random checkpoints of vLLM's text-generation families, from transformers' own config and model classes.

The configs are shrunk by the names of their fields: the same field means the same in every family that has it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.support.grid_weights import fits, on_grid

HIDDEN, INTERMEDIATE, HEADS, HEAD_DIM, LAYERS, VOCAB, EXPERTS = 128, 256, 4, 32, 2, 256, 4

_SIZES: dict[str, Any] = {
    "hidden_size": HIDDEN, "n_embd": HIDDEN, "d_model": HIDDEN, "word_embed_proj_dim": HIDDEN, "dim": HIDDEN,
    "embedding_size": HIDDEN, "intermediate_size": INTERMEDIATE, "n_inner": INTERMEDIATE, "ffn_dim": INTERMEDIATE,
    "ffn_hidden_size": INTERMEDIATE, "block_ff_dim": INTERMEDIATE, "block_dim": HIDDEN,
    "num_hidden_layers": LAYERS, "n_layer": LAYERS, "num_layers": LAYERS, "n_layers": LAYERS,
    "num_attention_heads": HEADS, "n_head": HEADS, "n_heads": HEADS, "num_key_value_heads": 2, "num_kv_heads": 2,
    "head_dim": HEAD_DIM, "global_head_dim": HEAD_DIM, "rotary_dim": HEAD_DIM, "num_global_key_value_heads": 2,
    "swa_head_dim": HEAD_DIM, "v_head_dim": HEAD_DIM, "swa_v_head_dim": HEAD_DIM, "swa_num_attention_heads": HEADS,
    "swa_num_key_value_heads": 2,
    "vocab_size": VOCAB, "vocab_size_per_layer_input": VOCAB, "hidden_size_per_layer_input": 32,
    "max_position_embeddings": 256, "n_positions": 256, "max_seq_len": 256, "original_max_position_embeddings": 256,
    "sliding_window": 16, "attention_chunk_size": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "num_experts": EXPERTS, "num_local_experts": EXPERTS, "n_routed_experts": EXPERTS, "moe_num_experts": EXPERTS,
    "num_experts_per_tok": 2, "moe_k": 2, "moe_topk": 2, "top_k_experts": 2, "moe_intermediate_size": 64,
    "expert_ffn_hidden_size": 64, "shared_expert_intermediate_size": 64, "shared_intermediate_size": 64,
    "moe_shared_expert_intermediate_size": 64, "intermediate_size_mlp": INTERMEDIATE, "n_group": 1, "topk_group": 1,
    "n_shared_experts": 1, "num_shared_experts": 1, "moe_num_shared_experts": 1, "first_k_dense_replace": 1,
    "moe_layer_start_index": 1, "moe_layer_interval": 1, "num_dense_layers": 1, "interleave_moe_layer_step": 1,
    "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 32, "q_lora_rank": 64,
    "index_n_heads": 4, "index_head_dim": 128, "index_topk": 64,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 64, "linear_value_head_dim": 64,
    "full_attention_interval": 2, "state_size": 16, "time_step_rank": 8, "mamba_d_state": 16, "mamba_d_ssm": 256,
    "mamba_n_heads": 8, "mamba_d_head": 32, "mamba_n_groups": 1, "mamba_chunk_size": 64, "mamba_headdim": 32,
    "mamba_num_heads": 8, "mamba_head_dim": 32, "ssm_state_size": 16, "n_groups": 1, "chunk_size": 64,
    "mamba_expand": 2, "expand": 2, "conv_dim": HIDDEN, "attn_layer_period": 2, "attn_layer_offset": 1,
    "expert_layer_period": 2, "expert_layer_offset": 1, "layer_group_size": 2, "num_kv_shared_layers": 0,
    "laurel_rank": 16, "num_mtp_layers": 0, "num_nextn_predict_layers": 0, "conv_L_cache": 3, "zero_expert_num": 2,
    "router_aux_loss_coef": 0.0, "adapter_rank": 16, "emb_dim": HIDDEN, "dim_model_base": HIDDEN, "scale_depth": 1.0,
}  # fmt: skip
# None in a standard config means: derived from others. Elsewhere it means: the family's member does without.
_DERIVED = {"head_dim", "num_key_value_heads", "n_group", "topk_group", "num_experts_per_tok"}
# Where one family gives a name another meaning, or needs more layers to have one of each kind.
_OWN: dict[str, dict[str, Any]] = {
    "DbrxForCausalLM": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 128, "moe_num_experts": EXPERTS, "moe_top_k": 2},
    },
    "FalconForCausalLM": {"new_decoder_architecture": True, "ffn_hidden_size": 512, "alibi": False, "bias": False},
    "FalconMambaForCausalLM": {"intermediate_size": 256},
    "MambaForCausalLM": {"intermediate_size": 256},
    "Mamba2ForCausalLM": {"num_heads": 8, "head_dim": 32},
    "Zamba2ForCausalLM": {"n_mamba_heads": 8, "attention_head_dim": 64, "attention_hidden_size": 256},
    "GPTJForCausalLM": {"rotary_dim": 16},
    "GPT2LMHeadModel": {"n_inner": 512},
    "OPTForCausalLM": {"ffn_dim": 256, "do_layer_norm_before": True},
    "BloomForCausalLM": {},
    "Llama4ForCausalLM": {
        "moe_layers": [0, 1],
        "no_rope_layers": [1, 0],
        "layer_types": None,
        "num_experts_per_tok": 1,
    },
    "NemotronHForCausalLM": {"hybrid_override_pattern": "M*", "layers_block_type": ["mamba", "attention"]},
    "Gemma3nForCausalLM": {"intermediate_size": [256, 256], "activation_sparsity_pattern": [0.0, 0.0]},
    "JambaForCausalLM": {"mamba_dt_rank": 8, "use_mamba_kernels": False},
    "MiniCPM3ForCausalLM": {"qk_rope_head_dim": 32, "kv_lora_rank": 64, "v_head_dim": 64},
    "FalconH1ForCausalLM": {"mamba_n_heads": 8},
    "GraniteMoeHybridForCausalLM": {"layer_types": ["mamba", "attention"]},
    "Qwen2MoeForCausalLM": {"decoder_sparse_step": 1, "mlp_only_layers": []},
    "Qwen3MoeForCausalLM": {"decoder_sparse_step": 1, "mlp_only_layers": []},
    "Phi3ForCausalLM": {"sliding_window": None},
    "MiniMaxM2ForCausalLM": {"rotary_dim": HEAD_DIM},
    "Lfm2ForCausalLM": {
        "block_dim": HIDDEN,
        "block_ff_dim": INTERMEDIATE,
        "block_multiple_of": 32,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,
    },
    "DeepseekV3ForCausalLM": {"topk_method": "noaux_tc"},
    "DeepseekV32ForCausalLM": {"topk_method": "noaux_tc"},
    "Glm4MoeLiteForCausalLM": {"topk_method": "noaux_tc"},
    "GlmMoeDsaForCausalLM": {"topk_method": "noaux_tc"},
    "AXK1ForCausalLM": {"topk_method": "noaux_tc"},
    "Glm4MoeForCausalLM": {"head_dim": HEAD_DIM},
}


def tiny_config(architecture: str) -> Any:
    """A transformers config of ``architecture`` with two layers.

    Raises:
        LookupError: transformers has no class of that name.
    """
    import transformers

    cls = getattr(transformers, architecture, None)
    if cls is None:
        raise LookupError(f"transformers {transformers.__version__} has no {architecture}")
    standard = cls.config_class()
    known = set(standard.to_dict()) | set(getattr(standard, "attribute_map", {}))
    values = {
        name: value
        for name, value in _SIZES.items()
        if name in known and (name in _DERIVED or getattr(standard, name, 0) is not None)
    }
    for name, target in getattr(standard, "attribute_map", {}).items():
        if name in values and target in values:
            del values[name]
    layers = standard.num_hidden_layers
    for name, value in standard.to_dict().items():
        if isinstance(value, list) and len(value) == layers and name not in values:
            kinds = list(dict.fromkeys(map(str, value)))
            first = {kind: next(v for v in value if str(v) == kind) for kind in kinds}
            values[name] = [first[kinds[min(i, len(kinds) - 1)]] for i in range(LAYERS)]
        if isinstance(value, int) and value is not True and name not in values and name.endswith("_token_id"):
            values[name] = min(value, VOCAB - 1)
    values |= _OWN.get(architecture, {})
    config = cls.config_class(**values)
    config.architectures = [architecture]
    config.dtype = torch.float32
    return config


def write_family(folder: Path, architecture: str, seed: int = 0) -> Path:
    """A checkpoint with random weights whose logits are of the order of one, named as transformers saves them.

    Matrices are on the grid of grid_weights.py.
    """
    import transformers

    torch.manual_seed(seed)
    config = tiny_config(architecture)
    model = getattr(transformers, architecture)(config).float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2:
                scale = 1.0 if "embed" in name or "wte" in name else parameter.shape[-1] ** -0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
            elif name.endswith("bias") and "dt" not in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
            elif "norm" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    for file in folder.glob("*.safetensors"):
        tensors = {n: on_grid(t, generator) if fits(t) else t for n, t in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})
    return folder
