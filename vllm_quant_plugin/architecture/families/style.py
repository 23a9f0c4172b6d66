"""How the transformer families differ from Llama: one small record each. No torch.

Sources: the configuration classes of transformers and vLLM's model files (model_executor/models)
of the same names, versions 0.32 and 0.33.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from vllm_quant_plugin.architecture.arch import Ends
from vllm_quant_plugin.architecture.reader import Reader

Flag = Callable[[Reader], bool]


def yes(_: Reader) -> bool:
    return True


def no(_: Reader) -> bool:
    return False


def key(*names: str, default: bool = False) -> Flag:
    return lambda reader: reader.flag(*names, default=default)


attention_bias = key("attention_bias", "bias")
mlp_bias = key("mlp_bias")


@dataclass(frozen=True)
class Style:
    """A decoder family.

    Attributes:
        qk_norm: see ``parts.Attention``; a function of the config where it depends on it.
        norms: the norms of one layer, each over hidden.
        window: name of the rule in ``windows`` that gives the layers with a sliding window.
        gated_attention: q_proj also makes a gate as wide as the queries.
        rotary: ``table`` one cos/sin table, ``two`` another one for sliding layers,
            ``float32`` one in float32, ``none`` where vLLM
            runs the model through transformers, which computes it.
        ends: see ``ModelArch``.
        positions: key of the number of learned positions, which have two rows more; "" for none.
        head: ``config`` lm_head is the embedding where the config ties them, ``embedding`` it always is, ``own`` never.
        tied_pipeline: whether vLLM builds tied embeddings in pipeline stages.
        moe: name of the rule in ``moe`` that gives the sparse layers and their experts; "" for dense.
        defaults: transformers' defaults of keys that configs leave out.
    """

    qkv_bias: Flag = attention_bias
    o_bias: Flag = attention_bias
    mlp_bias: Flag = mlp_bias
    gated: bool = True
    qk_norm: str | Callable[[Reader], str] = ""
    norm_bias: bool = False
    norm_affine: bool = True
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    final_norm: str = "norm"
    attention: str = "self_attn"
    attention_names: tuple[str, str, str, str] = ("q_proj", "k_proj", "v_proj", "o_proj")
    norm_names: tuple[str, str] = ("q_norm", "k_norm")
    mlp: str = "mlp"
    mlp_names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    root: str = "model"
    embed: str = "embed_tokens"
    lm_head: str = "lm_head"
    head_bias: Flag = no
    inner: tuple[str, ...] = ("intermediate_size",)
    window: str = "layer_types"
    moe: str = ""
    tied: bool = False
    head: Literal["config", "embedding", "own"] = "config"
    sinks: bool = False
    gated_attention: bool = False
    rotary: str = "table"
    ends: Ends = "guarded"
    positions: str = ""
    tied_pipeline: bool = True
    defaults: dict[str, Any] = field(default_factory=dict)


_PHI_NAMES = ("q_proj", "k_proj", "v_proj", "dense")
_GATE_UP = ("gate_up_proj", "gate_up_proj", "down_proj")
_GEMMA_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)

STYLES: dict[str, Style] = {
    "llama": Style(),
    "mistral": Style(qkv_bias=no, o_bias=no, mlp_bias=no, window="uniform", defaults={"num_key_value_heads": 8}),
    "qwen2": Style(qkv_bias=yes, o_bias=no, mlp_bias=no, window="qwen"),
    "qwen3": Style(qk_norm="head", mlp_bias=no, o_bias=no, window="qwen", defaults={"head_dim": 128}),
    "mixtral": Style(
        ends="everywhere", qkv_bias=no, o_bias=no, window="uniform", moe="mixtral", defaults={"num_key_value_heads": 8}
    ),
    "qwen2_moe": Style(
        ends="everywhere", qkv_bias=key("qkv_bias", default=True), o_bias=no, mlp_bias=no, window="none", moe="qwen"
    ),
    "qwen3_moe": Style(ends="everywhere", qk_norm="head", mlp_bias=no, o_bias=no, window="none", moe="qwen"),
    "gemma": Style(ends="everywhere", mlp_bias=no, window="none", tied=True, defaults={"head_dim": 256}),
    "gemma2": Style(
        head="embedding",
        ends="everywhere",
        norms=_GEMMA_NORMS,
        mlp_bias=no,
        window="alternating",
        tied=True,
        defaults={"head_dim": 256},
    ),
    "gemma3_text": Style(
        ends="everywhere",
        norms=_GEMMA_NORMS,
        mlp_bias=no,
        qk_norm="head",
        window="gemma3",
        tied=True,
        rotary="two",
        defaults={
            "head_dim": 256,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "vocab_size": 262_208,
            "sliding_window_pattern": 6,
            "sliding_window": 4096,
            "max_position_embeddings": 131_072,
        },
    ),
    "gpt_neox": Style(
        qkv_bias=key("attention_bias", default=True),
        o_bias=key("attention_bias", default=True),
        mlp_bias=yes,
        gated=False,
        norm_bias=True,
        attention="attention",
        attention_names=("query_key_value", "query_key_value", "query_key_value", "dense"),
        mlp_names=("", "dense_h_to_4h", "dense_4h_to_h"),
        root="gpt_neox",
        embed="embed_in",
        final_norm="final_layer_norm",
        lm_head="embed_out",
        window="none",
        rotary="none",
    ),
    "phi3": Style(
        qkv_bias=no,
        o_bias=no,
        mlp_bias=no,
        window="uniform",
        attention_names=("qkv_proj", "qkv_proj", "qkv_proj", "o_proj"),
        mlp_names=_GATE_UP,
    ),
    "granite": Style(window="none"),
    "granitemoe": Style(ends="everywhere", mlp_bias=no, window="none", moe="granite"),
    "internlm2": Style(
        ends="everywhere",
        qkv_bias=key("bias"),
        o_bias=key("bias"),
        mlp_bias=no,
        attention="attention",
        attention_names=("wq", "wk", "wv", "wo"),
        norms=("attention_norm", "ffn_norm"),
        mlp="feed_forward",
        mlp_names=("w1", "w3", "w2"),
        embed="tok_embeddings",
        lm_head="output",
        window="none",
    ),
    "internlm3": Style(qkv_bias=key("qkv_bias"), o_bias=key("bias"), mlp_bias=key("mlp_bias", "bias"), window="none"),
    "cohere": Style(
        head="embedding",
        ends="everywhere",
        qk_norm=lambda r: "sharded" if r.flag("use_qk_norm") else "",
        norms=("input_layernorm",),
        mlp_bias=no,
        o_bias=key("attention_bias"),
        window="none",
        tied=True,
    ),
    "cohere2": Style(
        head="embedding",
        ends="everywhere",
        qk_norm="",
        norms=("input_layernorm",),
        mlp_bias=no,
        window="cohere2",
        tied=True,
        defaults={"sliding_window_pattern": 4},
    ),
    "starcoder2": Style(
        qkv_bias=key("use_bias", default=True),
        o_bias=key("use_bias", default=True),
        mlp_bias=key("use_bias", default=True),
        gated=False,
        norm_bias=True,
        mlp_names=("", "c_fc", "c_proj"),
        window="uniform",
        tied=True,
        rotary="none",
    ),
    "exaone4": Style(
        qkv_bias=no,
        o_bias=no,
        mlp_bias=no,
        qk_norm="head",
        norms=("post_attention_layernorm", "post_feedforward_layernorm"),
        window="exaone4",
    ),
    "nemotron": Style(norm_bias=True, gated=False, mlp_names=("", "up_proj", "down_proj"), window="none"),
    "ernie4_5": Style(qkv_bias=key("use_bias"), o_bias=key("use_bias"), mlp_bias=key("use_bias"), window="none"),
    "ernie4_5_moe": Style(
        qkv_bias=key("use_bias"),
        o_bias=key("use_bias"),
        mlp_bias=key("use_bias"),
        window="none",
        moe="ernie",
        tied_pipeline=False,
    ),
    "minimax_m2": Style(head="own", qkv_bias=no, o_bias=no, qk_norm="sharded", window="none", moe="minimax"),
    "opt": Style(
        qkv_bias=key("enable_bias", default=True),
        o_bias=key("enable_bias", default=True),
        mlp_bias=key("enable_bias", default=True),
        gated=False,
        norm_bias=True,
        norms=("self_attn_layer_norm", "final_layer_norm"),
        final_norm="final_layer_norm",
        attention_names=("q_proj", "k_proj", "v_proj", "out_proj"),
        mlp_names=("", "fc1", "fc2"),
        root="model.decoder",
        inner=("ffn_dim",),
        window="none",
        tied=True,
        rotary="none",
        ends="everywhere",
        positions="max_position_embeddings",
    ),
    "olmo": Style(norm_affine=False, mlp_bias=no, window="none", rotary="none"),
    "olmo2": Style(
        qk_norm="full",
        mlp_bias=no,
        norms=("post_attention_layernorm", "post_feedforward_layernorm"),
        window="none",
        rotary="none",
    ),
    "olmo3": Style(
        qk_norm="full",
        mlp_bias=no,
        norms=("post_attention_layernorm", "post_feedforward_layernorm"),
        window="layer_types",
        rotary="none",
    ),
    "olmoe": Style(head="own", ends="everywhere", qk_norm="full", window="none", moe="olmoe"),
    "phi": Style(
        qkv_bias=yes,
        o_bias=yes,
        mlp_bias=yes,
        gated=False,
        norm_bias=True,
        norms=("input_layernorm",),
        attention_names=_PHI_NAMES,
        mlp_names=("", "fc1", "fc2"),
        final_norm="final_layernorm",
        window="none",
        rotary="none",
    ),
    "phimoe": Style(ends="everywhere", norm_bias=True, moe="mixtral", window="uniform", head_bias=key("lm_head_bias")),
    "stablelm": Style(
        ends="everywhere",
        qkv_bias=key("use_qkv_bias"),
        o_bias=no,
        mlp_bias=no,
        norm_bias=True,
        window="none",
    ),
    "glm": Style(o_bias=no, mlp_bias=no, window="none", rotary="none", mlp_names=_GATE_UP),
    "glm4": Style(
        o_bias=no,
        mlp_bias=no,
        window="none",
        norms=("input_layernorm", "post_attention_layernorm", "post_self_attn_layernorm", "post_mlp_layernorm"),
    ),
    "smollm3": Style(window="layer_types", rotary="none"),
    "seed_oss": Style(
        qkv_bias=key("attention_bias", default=True), o_bias=key("attention_out_bias"), window="none", rotary="none"
    ),
    "glm4_moe": Style(
        head="own",
        o_bias=no,
        mlp_bias=no,
        qk_norm=lambda r: "head" if r.flag("use_qk_norm") else "",
        window="none",
        moe="deepseek",
    ),
    "deepseek": Style(qkv_bias=no, o_bias=no, mlp_bias=no, window="none", moe="deepseek"),
    "llama4_text": Style(
        qkv_bias=no,
        o_bias=no,
        mlp_bias=no,
        mlp="feed_forward",
        inner=("intermediate_size_mlp",),
        window="llama4",
        moe="llama4",
        defaults={"head_dim": 128},
    ),
    "gpt_oss": Style(
        head="own",
        ends="everywhere",
        qkv_bias=yes,
        o_bias=yes,
        sinks=True,
        window="alternating",
        moe="gpt_oss",
        rotary="float32",
        defaults={"head_dim": 64},
    ),
}
