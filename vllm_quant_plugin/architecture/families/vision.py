"""Vision towers and their projectors, and what they demand of tensor parallelism. No torch.

Source: vllm/model_executor/models/{clip,siglip,pixtral,llava,llava_next,mistral3,gemma3_mm}.py of 0.32 and 0.33.
vLLM cuts a tower as it cuts a decoder unless ``--mm-encoder-tp-mode data`` is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vllm_quant_plugin.architecture.arch import Parameter, TpRule
from vllm_quant_plugin.architecture.defaults import completed, part_type
from vllm_quant_plugin.architecture.families import parts
from vllm_quant_plugin.architecture.reader import Reader

Tower = tuple[list[Parameter], list[TpRule]]
# Towers that vLLM builds whole on every rank where their heads do not divide, or pads with heads of zeros.
_ANY_HEADS = ("internvl", "internvl_chat", "kimi_k25", "muse_glimmer", "gemma3n", "gemma4")


def vision_tower(config: Mapping[str, Any], hidden: int) -> Tower | None:
    """Parameters and rules of a model's vision tower and projector; None where config.json alone does not size it.

    Args:
        hidden: width of the language model.
    """
    whole = str(config.get("model_type") or "")
    outer = Reader(completed(config, whole))
    vision = config.get("vision_config")
    projector = _PROJECTORS.get(whole)
    if projector is None or not isinstance(vision, dict):
        return None
    kind = str(vision.get("model_type") or part_type(whole, "vision_config"))
    tower = _TOWERS.get(kind)
    if tower is None:
        return None
    reader = Reader(completed(vision, kind), "config.json: vision_config")
    depth = reader.integer("num_hidden_layers", limit="layers")
    used = depth if whole == "gemma3" else _feature_depth(outer, depth)
    found, rules = tower(reader, used, whole == "gemma3")
    return [*found, *projector(outer, reader, hidden)], rules


def head_rules(config: Mapping[str, Any]) -> list[TpRule]:
    """The rule for the heads of a tower whose parameters are not described here."""
    whole, vision = str(config.get("model_type") or ""), config.get("vision_config")
    if not isinstance(vision, dict) or whole in _ANY_HEADS:
        return []
    kind = str(part_type(whole, "vision_config") or vision.get("model_type") or "")
    reader = Reader(completed(vision, kind), "config.json: vision_config")
    heads = reader.integer("num_attention_heads", "num_heads", default=0, least=0)
    return [TpRule("vision heads", heads)] if heads else []


def _feature_depth(outer: Reader, depth: int) -> int:
    """Layers up to the deepest one whose output is used; negative numbers count from the end."""
    found = outer.config.get("vision_feature_layer", -2)
    layers = found if isinstance(found, list) else [found]
    return max((depth + i + 1 if i < 0 else i for i in layers if isinstance(i, int)), default=depth)


def _attention(prefix: str, width: int, heads: int, names: tuple[str, str, str, str], bias: bool) -> list[Parameter]:
    dim = max(width // heads, 1)
    return parts.Attention(
        width, heads, heads, dim, dim, qkv_bias=bias, o_bias=bias, names=names
    ).parameters(prefix)  # fmt: skip


def _encoder(reader: Reader, root: str, used: int) -> Tower:
    """The encoder layers that CLIP and SigLIP share."""
    width, inner = reader.integer("hidden_size"), reader.integer("intermediate_size")
    heads = reader.integer("num_attention_heads")
    found: list[Parameter] = []
    for i in range(used):
        prefix = f"{root}.encoder.layers.{i}"
        found += _attention(f"{prefix}.self_attn", width, heads, ("q_proj", "k_proj", "v_proj", "out_proj"), True)
        found += parts.norm(f"{prefix}.layer_norm1", width, bias=True)
        found += parts.mlp(f"{prefix}.mlp", width, inner, gated=False, bias=True, names=("", "fc1", "fc2"))
        found += parts.norm(f"{prefix}.layer_norm2", width, bias=True)
    return found, [TpRule("vision heads", heads), TpRule("vision features", inner)]


def _patches(reader: Reader) -> tuple[int, int, int]:
    """Width, inputs of the patch embedding, number of patches."""
    size, patch = reader.integer("image_size"), reader.integer("patch_size")
    return reader.integer("hidden_size"), reader.integer("num_channels", default=3) * patch**2, (size // patch) ** 2


def clip(reader: Reader, used: int, whole: bool) -> Tower:
    root = "vision_tower.vision_model"
    width, pixels, patches = _patches(reader)
    found = [
        parts.vector(f"{root}.embeddings.class_embedding", width),
        Parameter(f"{root}.embeddings.patch_embedding.weight", (width, pixels), "replicated"),
        Parameter(f"{root}.embeddings.position_embedding.weight", (patches + 1, width), "replicated"),
        *parts.norm(f"{root}.pre_layrnorm", width, bias=True),
    ]
    layers, rules = _encoder(reader, root, used)
    after = parts.norm(f"{root}.post_layernorm", width, bias=True) if whole else []
    return [*found, *layers, *after], rules


def siglip(reader: Reader, used: int, whole: bool) -> Tower:
    root = "vision_tower.vision_model"
    width, pixels, patches = _patches(reader)
    found = [
        Parameter(f"{root}.embeddings.patch_embedding.weight", (width, pixels), "replicated"),
        parts.vector(f"{root}.embeddings.patch_embedding.bias", width),
        Parameter(f"{root}.embeddings.position_embedding.weight", (patches, width), "replicated"),
    ]
    layers, rules = _encoder(reader, root, used)
    after = parts.norm(f"{root}.post_layernorm", width, bias=True) if whole else []
    return [*found, *layers, *after], rules


def pixtral(reader: Reader, used: int, whole: bool) -> Tower:
    width, inner = reader.integer("hidden_size"), reader.integer("intermediate_size")
    heads, patch = reader.integer("num_attention_heads"), reader.integer("patch_size")
    pixels = reader.integer("num_channels", default=3) * patch**2
    found = [
        Parameter("vision_tower.patch_conv.weight", (width, pixels), "replicated"),
        *parts.norm("vision_tower.ln_pre", width),
    ]
    for i in range(used):
        prefix = f"vision_tower.transformer.layers.{i}"
        found += parts.norm(f"{prefix}.attention_norm", width)
        found += _attention(f"{prefix}.attention", width, heads, ("q_proj", "k_proj", "v_proj", "o_proj"), False)
        found += parts.mlp(f"{prefix}.feed_forward", width, inner)
        found += parts.norm(f"{prefix}.ffn_norm", width)
    return found, [TpRule("vision heads", heads), TpRule("vision features", inner)]


def _two_linears(outer: Reader, width: int, hidden: int, bias: bool) -> list[Parameter]:
    root = "multi_modal_projector"
    layers = outer.config.get("vision_feature_layer", -2)
    inputs = width * (len(layers) if isinstance(layers, list) else 1)
    return [
        *parts.linear(f"{root}.linear_1", hidden, inputs, "column", bias=bias),
        *parts.linear(f"{root}.linear_2", hidden, hidden, "row", bias=bias),
    ]


def llava(outer: Reader, vision: Reader, hidden: int) -> list[Parameter]:
    bias = outer.flag("multimodal_projector_bias", default=True)
    return _two_linears(outer, vision.integer("hidden_size"), hidden, bias)


def llava_next(outer: Reader, vision: Reader, hidden: int) -> list[Parameter]:
    return [*llava(outer, vision, hidden), parts.vector("image_newline", hidden)]


def mistral3(outer: Reader, vision: Reader, hidden: int) -> list[Parameter]:
    width, merge = vision.integer("hidden_size"), outer.integer("spatial_merge_size", default=2)
    merging = "multi_modal_projector.patch_merger.merging_layer"
    return [
        *parts.norm("multi_modal_projector.norm", width),
        Parameter(f"{merging}.weight", (width, width * merge**2), "replicated"),
        *_two_linears(outer, width, hidden, outer.flag("multimodal_projector_bias")),
    ]


def gemma3(outer: Reader, vision: Reader, hidden: int) -> list[Parameter]:
    width, root = vision.integer("hidden_size"), "multi_modal_projector"
    return [
        Parameter(f"{root}.mm_input_projection_weight", (width, hidden), "replicated"),
        *parts.norm(f"{root}.mm_soft_emb_norm", width),
    ]


_TOWERS: dict[str, Callable[[Reader, int, bool], Tower]] = {
    "clip_vision_model": clip,
    "siglip_vision_model": siglip,
    "pixtral": pixtral,
}
_PROJECTORS: dict[str, Callable[[Reader, Reader, int], list[Parameter]]] = {
    "llava": llava,
    "llava_next": llava_next,
    "mistral3": mistral3,
    "gemma3": gemma3,
}
