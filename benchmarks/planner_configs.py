"""Random but legal config.json files: families, shapes, windows, nesting and quantization. Pure; no torch."""

from __future__ import annotations

import random
from typing import Any

Config = dict[str, Any]

# model_type -> architecture, of families whose config is that of Llama with a few keys more.
DENSE = {
    "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM", "gemma2": "Gemma2ForCausalLM", "gemma3_text": "Gemma3ForCausalLM",
    "phi3": "Phi3ForCausalLM", "starcoder2": "Starcoder2ForCausalLM", "olmo2": "Olmo2ForCausalLM",
    "glm4": "Glm4ForCausalLM", "cohere2": "Cohere2ForCausalLM", "granite": "GraniteForCausalLM",
    "stablelm": "StableLmForCausalLM", "gpt_neox": "GPTNeoXForCausalLM", "smollm3": "SmolLM3ForCausalLM",
    "gemma": "GemmaForCausalLM", "cohere": "CohereForCausalLM", "glm": "GlmForCausalLM", "olmo": "OlmoForCausalLM",
    "phi": "PhiForCausalLM", "exaone4": "Exaone4ForCausalLM", "nemotron": "NemotronForCausalLM",
    "seed_oss": "SeedOssForCausalLM", "olmo3": "Olmo3ForCausalLM", "ernie4_5": "Ernie4_5ForCausalLM",
}  # fmt: skip
EXPERTS = {
    "mixtral": "MixtralForCausalLM", "qwen2_moe": "Qwen2MoeForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM",
    "granitemoe": "GraniteMoeForCausalLM", "olmoe": "OlmoeForCausalLM", "glm4_moe": "Glm4MoeForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM", "gpt_oss": "GptOssForCausalLM", "minimax_m2": "MiniMaxM2ForCausalLM",
}  # fmt: skip
NESTED = {
    "llava": ("LlavaForConditionalGeneration", "llama"),
    "mistral3": ("Mistral3ForConditionalGeneration", "mistral"),
    "gemma3": ("Gemma3ForConditionalGeneration", "gemma3_text"),
    "llava_next": ("LlavaNextForConditionalGeneration", "mistral"),
}
HEADS = ((4, 4), (4, 2), (6, 2), (8, 8), (8, 1), (8, 4), (12, 4), (12, 12), (14, 2), (16, 8), (20, 4), (24, 8), (40, 8))
INNER = (512, 768, 1024, 1408, 1536, 2816, 3072, 4864, 5632, 8192)


def generate(rng: random.Random, count: int) -> list[tuple[str, Config, str | None]]:
    """``count`` configurations: name, config.json and ``--kv-cache-dtype``."""
    found = []
    for i in range(count):
        kind = ("dense", "dense", "dense", "experts", "nested")[i % 5]
        config = {"dense": _dense, "experts": _experts, "nested": _nested}[kind](rng)
        text = config.get("text_config", config)
        method = ""
        if rng.random() < 0.65 and config["model_type"] not in _NOT_QUANTIZED:
            method = rng.choice(_OF_EXPERTS if kind == "experts" else sorted(_METHODS))
            root = "language_model.model" if kind == "nested" else "model"
            stored = config["quantization_config"] = _METHODS[method](rng, root, text.get("num_hidden_layers", 4))
            # vLLM knows no fused names of StableLM, nor those of Qwen3-MoE's dense layers before it has built one: it
            # would quantize what the list keeps.
            if config["model_type"] in ("stablelm", "qwen3_moe"):
                stored.pop("modules_to_not_convert", None)
        kv_dtype = rng.choice((None, None, None, "fp8")) if kind == "dense" else None
        found.append((f"{i:03d}-{config['model_type']}-{method or 'bf16'}", config, kv_dtype))
    return found


def _text(rng: random.Random, model_type: str) -> Config:
    """The keys that all decoders share, and those of ``model_type``."""
    heads, kv_heads = rng.choice(HEADS)
    head_dim = rng.choice((32, 64, 128))
    own_dim = model_type in ("llama", "mistral", "qwen3", "gemma2", "gemma3_text", "glm4", "qwen3_moe", "glm4_moe",
                             "mixtral", "smollm3", "gemma", "glm", "exaone4", "nemotron", "seed_oss", "ernie4_5",
                             "minimax_m2", "gpt_oss")  # fmt: skip
    hidden = rng.choice((256, 512, 1024, 2048)) if own_dim and rng.random() < 0.5 else heads * head_dim
    layers = rng.randint(2, 6)
    config: Config = {
        "model_type": model_type, "hidden_size": hidden, "intermediate_size": rng.choice(INNER),
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "vocab_size": rng.choice((1000, 32000, 32001, 50257, 32064, 151936)), "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6, "torch_dtype": "bfloat16", "hidden_act": "silu",
    }  # fmt: skip
    if own_dim:
        config["head_dim"] = head_dim
    if rng.random() < 0.6:
        config["tie_word_embeddings"] = rng.random() < 0.5
    _SPECIAL.get(model_type, lambda *_: None)(rng, config)
    return config


def _dense(rng: random.Random) -> Config:
    model_type = rng.choice(sorted(DENSE))
    return {"architectures": [DENSE[model_type]], **_text(rng, model_type)}


def _qwen(rng: random.Random, config: Config) -> None:
    config["use_sliding_window"] = rng.random() < 0.5
    config["sliding_window"] = rng.choice((512, 1024))
    config["max_window_layers"] = rng.randint(0, config["num_hidden_layers"])


def _mistral(rng: random.Random, config: Config) -> None:
    config["sliding_window"] = rng.choice((None, 512, 4096))


def _llama(rng: random.Random, config: Config) -> None:
    config["attention_bias"] = rng.random() < 0.3
    config["mlp_bias"] = rng.random() < 0.3


def _gemma(rng: random.Random, config: Config) -> None:
    del config["hidden_act"]
    config["sliding_window"] = rng.choice((256, 1024))
    config["hidden_activation"] = "gelu_pytorch_tanh"
    if rng.random() < 0.5:
        kinds = ("sliding_attention", "full_attention")
        config["layer_types"] = [rng.choice(kinds) for _ in range(config["num_hidden_layers"])]


def _gemma_one(rng: random.Random, config: Config) -> None:
    config["hidden_act"] = "gelu_pytorch_tanh"


def _gemma_layers(rng: random.Random, config: Config) -> None:
    config["sliding_window"] = 512
    kinds = ("sliding_attention", "full_attention")
    config["layer_types"] = [rng.choice(kinds) for _ in range(config["num_hidden_layers"])]


def _cohere(rng: random.Random, config: Config) -> None:
    config["sliding_window"] = 512
    config["sliding_window_pattern"] = 4
    config.pop("rms_norm_eps")
    config["layer_norm_eps"] = 1e-5


def _phi3(rng: random.Random, config: Config) -> None:
    config["sliding_window"] = rng.choice((None, 512))
    config["pad_token_id"] = 0


def _stablelm(rng: random.Random, config: Config) -> None:
    config["use_qkv_bias"] = rng.random() < 0.5
    config["partial_rotary_factor"] = 0.25


def _neox(rng: random.Random, config: Config) -> None:
    for key in ("num_key_value_heads", "rms_norm_eps"):
        config.pop(key)
    config["hidden_act"] = "gelu"
    config["rotary_pct"] = 0.25
    config["use_parallel_residual"] = rng.random() < 0.5
    if rng.random() < 0.3:
        config["attention_bias"] = rng.random() < 0.5


def _mixtral(rng: random.Random, config: Config) -> None:
    config["num_local_experts"] = rng.choice((4, 8))
    config["num_experts_per_tok"] = 2
    config["sliding_window"] = rng.choice((None, 512))


def _qwen_moe(rng: random.Random, config: Config) -> None:
    config["num_experts"] = rng.choice((4, 8, 16))
    config["num_experts_per_tok"] = 2
    config["moe_intermediate_size"] = rng.choice((128, 352, 512))
    config["decoder_sparse_step"] = rng.choice((1, 1, 2))
    config["mlp_only_layers"] = [0] if rng.random() < 0.4 else []
    config["norm_topk_prob"] = True
    if config["model_type"] == "qwen2_moe":
        config["shared_expert_intermediate_size"] = rng.choice((512, 1024, 1408))


def _granite_moe(rng: random.Random, config: Config) -> None:
    config["num_local_experts"] = rng.choice((4, 8))
    config["num_experts_per_tok"] = 2


def _olmoe(rng: random.Random, config: Config) -> None:
    config["num_experts"] = rng.choice((8, 16))
    config["num_experts_per_tok"] = 2


def _glm4_moe(rng: random.Random, config: Config) -> None:
    config["n_routed_experts"] = rng.choice((4, 8))
    config["n_shared_experts"] = rng.choice((1, 2))
    config["moe_intermediate_size"] = rng.choice((128, 512))
    config["first_k_dense_replace"] = rng.choice((0, 1))
    config["num_experts_per_tok"] = 2
    config["n_group"], config["topk_group"] = 1, 1
    config["use_qk_norm"] = rng.random() < 0.5
    config["attention_bias"] = rng.random() < 0.5


def _deepseek(rng: random.Random, config: Config) -> None:
    config.pop("num_key_value_heads")
    config["num_key_value_heads"] = config["num_attention_heads"]
    config["q_lora_rank"] = rng.choice((None, 256))
    config["kv_lora_rank"] = 512
    config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"] = 128, 64, 128
    config["n_routed_experts"] = rng.choice((8, 16))
    config["n_shared_experts"] = rng.choice((1, 2))
    config["num_experts_per_tok"] = 2
    config["n_group"], config["topk_group"] = 1, 1
    config["topk_method"] = "noaux_tc"
    config["moe_intermediate_size"] = rng.choice((128, 256, 512))
    config["first_k_dense_replace"] = rng.choice((0, 1))


def _gpt_oss(rng: random.Random, config: Config) -> None:
    config["num_local_experts"] = rng.choice((4, 8))
    config["num_experts_per_tok"] = 2
    config["sliding_window"] = 128


def _minimax(rng: random.Random, config: Config) -> None:
    config["num_local_experts"] = rng.choice((8, 16))
    config["num_experts_per_tok"] = 2
    config["use_qk_norm"] = True
    config["rotary_dim"] = config["head_dim"]
    config["use_routing_bias"], config["scoring_func"] = True, "sigmoid"


def _phi(rng: random.Random, config: Config) -> None:
    config.pop("rms_norm_eps")
    config["num_key_value_heads"] = config["num_attention_heads"]
    config["partial_rotary_factor"] = 0.5


def _experts(rng: random.Random) -> Config:
    model_type = rng.choice(sorted(EXPERTS))
    return {"architectures": [EXPERTS[model_type]], **_text(rng, model_type)}


def _nested(rng: random.Random) -> Config:
    """A vision tower beside a decoder whose config may leave keys to transformers' defaults."""
    model_type = rng.choice(sorted(NESTED))
    architecture, inner = NESTED[model_type]
    text = _text(rng, inner)
    for key in ("torch_dtype",):
        text.pop(key)
    if rng.random() < 0.4:
        for key in rng.sample(("intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
                               "hidden_size", "max_position_embeddings"), rng.randint(1, 3)):  # fmt: skip
            text.pop(key, None)
    heads = rng.choice((2, 4, 6, 8, 12, 16))
    width = heads * rng.choice((32, 64))
    kind = {"mistral3": "pixtral", "gemma3": "siglip_vision_model"}.get(model_type, "clip_vision_model")
    vision: Config = {
        "model_type": kind, "hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": heads,
        "num_hidden_layers": rng.randint(2, 4), "image_size": 224, "patch_size": 14,
    }  # fmt: skip
    config: Config = {
        "architectures": [architecture], "model_type": model_type, "text_config": text, "vision_config": vision,
        "torch_dtype": "bfloat16",
    }  # fmt: skip
    if rng.random() < 0.4:
        config["tie_word_embeddings"] = rng.random() < 0.5
    if kind == "clip_vision_model":
        vision["projection_dim"] = 768
        config["image_token_index"] = 10
        config["vision_feature_layer"] = -2
    if model_type == "llava_next":
        config["image_grid_pinpoints"] = [[336, 672]]
    if model_type == "gemma3":
        config["mm_tokens_per_image"] = 64
    if model_type == "mistral3":
        vision["head_dim"] = width // heads
        config["spatial_merge_size"] = 2
        config["image_token_index"] = 10
    return config


def _awq(rng: random.Random, root: str, layers: int) -> Config:
    config: Config = {"quant_method": "awq", "bits": 4, "group_size": rng.choice((32, 64, 128)), "zero_point": True,
                      "version": "gemm"}  # fmt: skip
    kept = ["lm_head"] + ([f"{root}.layers.0."] if rng.random() < 0.4 else [])
    if rng.random() < 0.6:
        config["modules_to_not_convert"] = kept
    return config


def _gptq(rng: random.Random, root: str, layers: int) -> Config:
    config: Config = {"quant_method": "gptq", "bits": rng.choice((4, 8)), "group_size": rng.choice((32, 64, 128, -1)),
                      "sym": True, "desc_act": False}  # fmt: skip
    if rng.random() < 0.5:
        rules: Config = {}
        if rng.random() < 0.6:
            rules[r"-:.*\.layers\.0\..*"] = {}
        rules[r"+:.*\.layers\.1\..*"] = {"bits": 8, "group_size": rng.choice((32, 128))}
        config["dynamic"] = rules
    return config


def _fp8_block(rng: random.Random, root: str, layers: int) -> Config:
    config: Config = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128],
                      "fmt": "e4m3"}  # fmt: skip
    return _with_first_kept(rng, config, "modules_to_not_convert", root)


def _fp8_tensor(rng: random.Random, root: str, layers: int) -> Config:
    config: Config = {"quant_method": "fp8", "activation_scheme": rng.choice(("dynamic", "static"))}
    return _with_first_kept(rng, config, "modules_to_not_convert", root)


def _with_first_kept(rng: random.Random, config: Config, key: str, root: str) -> Config:
    if rng.random() < 0.5:
        leaves = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
                  "mlp.up_proj", "mlp.down_proj")  # fmt: skip
        config[key] = ["lm_head", *(f"{root}.layers.0.{leaf}" for leaf in leaves)]
    return config


def _group(bits: int, kind: str, strategy: str, group: int | None, symmetric: bool = True) -> Config:
    return {"num_bits": bits, "type": kind, "strategy": strategy, "group_size": group, "symmetric": symmetric,
            "dynamic": False, "actorder": None, "block_structure": None, "observer": "minmax"}  # fmt: skip


def _activation(bits: int, kind: str, dynamic: bool, symmetric: bool = True) -> Config:
    return {"num_bits": bits, "type": kind, "strategy": "token" if dynamic else "tensor", "symmetric": symmetric,
            "dynamic": dynamic, "group_size": None}  # fmt: skip


def _tensors(layout: str, groups: Config, ignore: list[str]) -> Config:
    return {"quant_method": "compressed-tensors", "format": layout, "quantization_status": "compressed",
            "config_groups": groups, "ignore": ignore, "kv_cache_scheme": None}  # fmt: skip


def _ignored(rng: random.Random) -> list[str]:
    return ["lm_head", *([r"re:.*vision_tower.*", r"re:.*multi_modal_projector.*", r"re:.*vision_model.*"]),
            *([r"re:.*layers\.0\..*"] if rng.random() < 0.5 else [])]  # fmt: skip


def _packed(rng: random.Random, root: str, layers: int) -> Config:
    def weights() -> Config:
        size = rng.choice((32, 64, 128, None))
        return _group(rng.choice((4, 8)), "int", "group" if size else "channel", size, rng.random() < 0.6)

    def entry(targets: list[str]) -> Config:
        return {"targets": targets, "weights": weights(), "input_activations": None, "output_activations": None}

    if rng.random() < 0.5:
        groups = {"group_0": entry(["Linear"])}
    else:
        groups = {"group_0": entry([r"re:.*self_attn.*"]), "group_1": entry([r"re:.*mlp.*"])}
    return _tensors("pack-quantized", groups, _ignored(rng))


def _int8(rng: random.Random, root: str, layers: int) -> Config:
    dynamic, symmetric = rng.random() < 0.5, rng.random() < 0.5
    weights = _group(8, "int", rng.choice(("channel", "tensor")), None)
    group = {"targets": ["Linear"], "weights": weights,
             "input_activations": _activation(8, "int", dynamic, symmetric)}  # fmt: skip
    return _tensors("int-quantized", {"group_0": group}, _ignored(rng))


def _fp8_channel(rng: random.Random, root: str, layers: int) -> Config:
    dynamic = rng.random() < 0.5
    weights = _group(8, "float", "channel" if dynamic else "tensor", None)
    group = {"targets": ["Linear"], "weights": weights,
             "input_activations": _activation(8, "float", dynamic)}  # fmt: skip
    return _tensors("float-quantized", {"group_0": group}, _ignored(rng))


_SPECIAL = {
    "llama": _llama, "mistral": _mistral, "qwen2": _qwen, "qwen3": _qwen, "gemma2": _gemma, "gemma3_text": _gemma,
    "cohere2": _cohere, "phi3": _phi3, "stablelm": _stablelm, "gpt_neox": _neox, "mixtral": _mixtral,
    "qwen2_moe": _qwen_moe, "qwen3_moe": _qwen_moe, "granitemoe": _granite_moe, "olmoe": _olmoe,
    "glm4_moe": _glm4_moe, "gemma": _gemma_one, "deepseek_v3": _deepseek, "gpt_oss": _gpt_oss, "minimax_m2": _minimax,
    "phi": _phi, "olmo3": _gemma_layers,
}  # fmt: skip
_METHODS = {
    "awq": _awq, "gptq": _gptq, "fp8_block": _fp8_block, "fp8": _fp8_tensor, "packed": _packed, "int8": _int8,
    "fp8_channel": _fp8_channel,
}  # fmt: skip
# vLLM builds these through code that does not know which of their modules a method has quantized.
_NOT_QUANTIZED = ("gpt_neox", "gpt_oss")
_OF_EXPERTS = ["fp8_block", "fp8", "fp8_channel", "packed", "gptq", "awq"]
