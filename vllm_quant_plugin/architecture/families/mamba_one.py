"""First-generation Mamba: Mamba and Falcon-Mamba without attention, Jamba with some. No torch.

Sources: vllm/model_executor/models (mamba.py, jamba.py) of 0.32 and 0.33.
"""

from __future__ import annotations

import math

from vllm_quant_plugin.architecture.arch import Layer, ModelArch, Parameter, TpRule
from vllm_quant_plugin.architecture.families import parts
from vllm_quant_plugin.architecture.families.mamba import Mamba1
from vllm_quant_plugin.architecture.families.mixed import Config, assemble, attention_of, full_cache
from vllm_quant_plugin.architecture.reader import Reader


def _rank(reader: Reader, name: str, hidden: int) -> int:
    """Rank of the time-step projection; "auto" is hidden / 16."""
    return math.ceil(hidden / 16) if reader.text(name) == "auto" else reader.integer(name, default=-(-hidden // 16))


def mamba(reader: Reader, config: Config) -> ModelArch:
    """Mamba and Falcon-Mamba: one mixer and one norm per layer."""
    hidden = reader.integer("hidden_size")
    inner = reader.integer("intermediate_size", "d_inner", default=2 * hidden)
    mixer = Mamba1(
        hidden, inner, reader.integer("state_size", default=16),
        reader.integer("conv_kernel", default=4, limit="layers"), _rank(reader, "time_step_rank", hidden),
        reader.flag("use_bias"), reader.flag("use_conv_bias", default=True),
    )  # fmt: skip
    layers = [
        Layer((*parts.norm(f"backbone.layers.{i}.norm", hidden), *mixer.parameters(f"backbone.layers.{i}.mixer")),
              (mixer.cache(),))
        for i in range(reader.integer("num_hidden_layers", limit="layers"))
    ]  # fmt: skip
    return assemble(
        reader, config, layers, mixer.rules(), root="backbone", embed="embeddings", norm="norm_f",
        tied=reader.flag("tie_word_embeddings", default=True), inner=inner, ends="everywhere",
    )  # fmt: skip


def jamba(reader: Reader, config: Config) -> ModelArch:
    """Jamba: attention in every ``attn_layer_period``-th layer, experts in every ``expert_layer_period``-th."""
    hidden, inner = reader.integer("hidden_size"), reader.integer("intermediate_size")
    attention = attention_of(reader, hidden)
    mixer = Mamba1(
        hidden, reader.integer("mamba_expand", default=2, limit="layers") * hidden,
        reader.integer("mamba_d_state", default=16), reader.integer("mamba_d_conv", default=4, limit="layers"),
        _rank(reader, "mamba_dt_rank", hidden), reader.flag("mamba_proj_bias"),
        reader.flag("mamba_conv_bias", default=True), norms=True,
    )  # fmt: skip
    period = reader.integer("attn_layer_period", default=8, limit="layers")
    offset = reader.integer("attn_layer_offset", default=4, limit="layers", least=0)
    sparse_period = reader.integer("expert_layer_period", default=2, limit="layers")
    sparse_offset = reader.integer("expert_layer_offset", default=1, limit="layers", least=0)
    experts = reader.integer("num_experts", default=16, limit="experts")
    layers: list[Layer] = []
    rules: list[TpRule] = []
    any_sparse = False
    for i in range(reader.integer("num_hidden_layers", limit="layers")):
        prefix, full = f"model.layers.{i}", i % period == offset
        is_sparse = experts > 1 and i % sparse_period == sparse_offset
        found: list[Parameter] = [
            *(attention.parameters(f"{prefix}.self_attn") if full else mixer.parameters(f"{prefix}.mamba")),
            *parts.norm(f"{prefix}.input_layernorm", hidden),
            *parts.norm(f"{prefix}.pre_ff_layernorm", hidden),
        ]
        if is_sparse:
            found += parts.router(f"{prefix}.feed_forward.router", experts, hidden)
            found += parts.experts(f"{prefix}.feed_forward", experts, hidden, inner)
        else:
            found += parts.mlp(f"{prefix}.feed_forward", hidden, inner)
        any_sparse |= is_sparse
        rules += attention.rules() if full else mixer.rules()
        rules.append(TpRule("expert features" if is_sparse else "MLP features", inner))
        layers.append(Layer(tuple(found), (full_cache(attention) if full else mixer.cache(),)))
    active = reader.integer("num_experts_per_tok", default=2, limit="experts")
    # vLLM keeps a head of its own even where the config ties it to the embeddings.
    return assemble(
        reader, config, layers, rules, norm="final_layernorm", inner=inner, heads=(attention.heads, attention.head_dim),
        experts=(experts, active) if any_sparse else (0, 0), ends="everywhere",
    )  # fmt: skip
