"""Which architectures vLLM 0.32 and 0.33 do not serve any more, and names that mean a known family. No torch.

Source: ``_PREVIOUSLY_SUPPORTED_MODELS`` in vllm/model_executor/models/registry.py, version 0.32.
"""

from __future__ import annotations

# architecture -> the last version that served it
REMOVED = {
    "AquilaForCausalLM": "0.24.0", "AquilaModel": "0.24.0", "ArcticForCausalLM": "0.28.0",
    "BaiChuanForCausalLM": "0.23.0", "BaichuanForCausalLM": "0.23.0", "BambaForCausalLM": "0.23.0",
    "ChameleonForConditionalGeneration": "0.28.0", "Dots1ForCausalLM": "0.23.0",
    "Grok1ForCausalLM": "0.24.0", "Grok1ModelForCausalLM": "0.24.0", "InternLMForCausalLM": "0.23.0",
    "JAISLMHeadModel": "0.22.0", "MPTForCausalLM": "0.28.0", "MiniMaxForCausalLM": "0.23.0",
    "MiniMaxM1ForCausalLM": "0.23.0", "MiniMaxText01ForCausalLM": "0.23.0", "MllamaForConditionalGeneration": "0.10.2",
    "MotifForCausalLM": "0.10.2", "MptForCausalLM": "0.28.0", "OuroForCausalLM": "0.26.0",
    "PersimmonForCausalLM": "0.25.0", "Phi3SmallForCausalLM": "0.9.2", "Phi4FlashForCausalLM": "0.10.2",
    "Plamo2ForCausalLM": "0.26.0", "QWenLMHeadModel": "0.23.0", "RWForCausalLM": "0.28.0",
    "StableLMEpochForCausalLM": "0.28.0", "TeleChatForCausalLM": "0.25.0", "XverseForCausalLM": "0.23.0",
}  # fmt: skip

# model_type -> the family whose decoder it has
ALIASES = {
    "gemma3": "gemma3_text", "gemma3n": "gemma3n_text", "gemma4": "gemma4_text",
    "llama4": "llama4_text", "ministral": "mistral", "mistral3": "mistral",
    "pixtral": "mistral",
    "qwen2_5_vl": "qwen2", "qwen2_5_vl_text": "qwen2", "qwen2_vl": "qwen2", "qwen2_vl_text": "qwen2",
    "qwen3_5": "qwen3_5_text", "qwen3_5_moe": "qwen3_5_moe_text",
    "qwen3_vl_moe_text": "qwen3_moe", "qwen3_vl_text": "qwen3", "yi": "llama",
}  # fmt: skip
