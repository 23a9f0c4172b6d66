"""A model's parameters from safetensors headers: names give the sharding, shapes the sizes. No torch.

The config still gives the caches and the rules; the tensors replace the parameters that the
family builder would assume, so that a model of an unknown family is sized as it is on disk.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import replace

from vllm_quant_plugin.architecture.arch import Fused, ModelArch, Parameter, Role
from vllm_quant_plugin.checkpoint import Checkpoint, TensorInfo
from vllm_quant_plugin.formats import get_format
from vllm_quant_plugin.formats.registry import code_leaves, module_shape, side_leaves
from vllm_quant_plugin.schemes import ModelScheme, StoredScheme
from vllm_quant_plugin.transforms import Application

_COLUMN = {"q_proj", "gate_proj", "up_proj", "gate_up_proj", "w1", "w3", "fc1", "c_fc", "wq", "q_b_proj", "kv_b_proj",
           "in_proj", "conv1d", "dense_h_to_4h", "linear_fc1", "in_proj_qkvz", "in_proj_ba", "in_proj_qkv",
           "in_proj_z", "in_proj_b", "in_proj_a", "A_log", "D", "dt_bias",
           "dt_proj", "qkv"}  # fmt: skip
_KV = {"k_proj", "v_proj", "wk", "wv"}
_FUSED = {"qkv_proj", "query_key_value", "Wqkv", "wqkv", "W_pack", "c_attn"}
_ROW = {"o_proj", "down_proj", "w2", "wo", "out_proj", "dense", "fc2", "c_proj", "dense_4h_to_h", "x_proj",
        "linear_fc2"}  # fmt: skip
_VOCAB = {"embed_tokens", "lm_head", "tok_embeddings", "output", "wte", "word_embeddings"}
_FLOAT32 = {"A_log", "e_score_correction_bias", "correct_output_scale"}
_CERTAIN = ("column", "row", "vocab", "replicated")
_LAYER = re.compile(r"^(?:model\.|language_model\.|transformer\.|backbone\.|decoder\.)*(?:layers|h|blocks)\.(\d+)\.")
_EXPERT = re.compile(r"\.experts\.(\d+)\.")
_SKIP = ("rotary_emb.inv_freq", "rotary_pos_emb", ".masked_bias", ".attn.bias")


def role_of(module: str) -> Role:
    """How vLLM cuts the module of this name; whole on each rank when the name is not known."""
    leaf = module.rpartition(".")[2].removesuffix("_blocks").removesuffix("_scales")
    expert = ".experts." in f"{module}."
    if leaf in _COLUMN or (expert and leaf in ("gate_up_proj", "gate_proj", "up_proj")):
        return "expert_column" if expert else "column"
    if leaf in _ROW:
        return "expert_row" if expert else "row"
    if leaf in _KV:
        return "kv"
    return "vocab" if leaf in _VOCAB else "replicated"


def with_headers(arch: ModelArch, checkpoint: Checkpoint, scheme: ModelScheme | None) -> ModelArch:
    """``arch`` with its parameters taken from the checkpoint's tensors.

    Tensors that vLLM does not load are left out: tied lm_head, multi-token-prediction layers, rotary tables.
    """
    tied = bool(arch.shared)
    per_layer: dict[int, list[Parameter]] = defaultdict(list)
    first: list[Parameter] = []
    last: list[Parameter] = []
    experts: Counter[tuple[str, str, tuple[int, ...]]] = Counter()
    maps: set[tuple[object, tuple[int, ...]]] = set()
    codes, sides = code_leaves(), side_leaves()
    kv_heads = max((cache.kv_heads for cache in arch.caches), default=0)
    fused: dict[str, list[Parameter]] = defaultdict(list)
    for one in arch.parameters():
        fused[one.name].append(one)
    order = {p.name: place for place, p in enumerate(arch.parameters())}
    roles: dict[str, Role] = {p.name: p.role for p in arch.parameters() if p.role in _CERTAIN}
    joins: dict[str, Fused] = {p.name: p.fused for p in arch.parameters() if p.fused}
    for module, leaves in checkpoint.modules():
        if any(mark in f"{module}.{leaf}" for mark in _SKIP for leaf in leaves) or module.startswith("mtp"):
            continue
        if tied and (module == "lm_head" or module.endswith(".lm_head")):
            continue
        match = _LAYER.match(f"{module}.")
        layer = int(match[1]) if match else None
        if layer is not None and (layer >= len(arch.layers) or _reads_another(arch, layer, module)):
            continue
        transform = scheme.transform_held_by(module) if scheme is not None else None
        if transform is not None:
            held = _transform_parameter(transform, module, leaves)
            if held is not None and (transform.map_key, held.shape) not in maps:
                maps.add((transform.map_key, held.shape))
                (per_layer[layer] if layer is not None else first).append(held)
            continue
        module_scheme = scheme.scheme_for(module) if scheme is not None else None
        for leaf, info in leaves.items():
            for parameter in _parameters(module, leaf, info, leaves, module_scheme, arch, kv_heads, codes, sides):
                known = roles.get(_inner(parameter.name))
                if known is not None and parameter.role in ("vocab", "replicated"):
                    parameter = replace(parameter, role=known)  # the family knows what the name does not show
                together = joins.get(_EXPERT.sub(".experts.0.", _inner(parameter.name)), "")
                if together:
                    parameter = replace(parameter, fused=together)
                found = _EXPERT.search(parameter.name)
                if found and parameter.count == 1:
                    experts[(_EXPERT.sub(".experts.0.", parameter.name), parameter.role, parameter.shape)] += 1
                    if found[1] != "0":
                        continue
                target = per_layer[layer] if layer is not None else (last if _is_last(module) else first)
                target += _split_rows(parameter, fused.get(_inner(parameter.name), []))
    # Parts that vLLM fuses follow one another, the first of them first; files have them by name.
    for parameters in per_layer.values():
        parameters.sort(key=lambda p: order.get(_EXPERT.sub(".experts.0.", _inner(p.name)), len(order)))
    layers = tuple(
        replace(old, parameters=tuple(_counted(p, experts) for p in per_layer[i])) for i, old in enumerate(arch.layers)
    )
    shared = tuple(p for p in first if p.role == "vocab") if tied else ()
    return replace(arch, layers=layers, first=tuple(first), last=tuple(last), shared=shared)


def _inner(name: str) -> str:
    """The name in the language model, which the family describes."""
    return name.replace("language_model.", "")


def _transform_parameter(application: Application, module: str, leaves: Mapping[str, TensorInfo]) -> Parameter | None:
    """What a layer keeps of the stored matrix of a transform; None where it can do without.

    Modules with the same matrix share it, so it counts where the first of them is.
    """
    stored = leaves.get("weight") or leaves.get("perm")
    if stored is None or not application.online or not application.transform.stored:
        return None
    size = stored.shape[0]
    return Parameter(f"{module}.weight", (size, size), "replicated", nbytes=application.transform.kept_bytes(size))


def _split_rows(parameter: Parameter, known: list[Parameter]) -> list[Parameter]:
    """One tensor whose rows are cut in several ways (Mamba-2: heads are divided, groups replicated)."""
    if len(known) < 2 or parameter.nbytes or sum(one.shape[0] for one in known) != parameter.shape[0]:
        return [parameter]
    return [
        replace(parameter, shape=(one.shape[0], *parameter.shape[1:]), role=one.role, heads=one.heads) for one in known
    ]


def _reads_another(arch: ModelArch, layer: int, module: str) -> bool:
    """Whether this is a key or value of a layer that reads another's cache: vLLM does not load it."""
    leaf = module.rpartition(".")[2]
    return not arch.layers[layer].caches and leaf in ("k_proj", "v_proj", "k_norm", "v_norm")


def _is_last(module: str) -> bool:
    leaf = module.rpartition(".")[2]
    vision = any(word in module for word in ("vision", "visual", "projector", "audio"))
    return not vision and leaf in ("lm_head", "output", "norm", "final_layernorm", "ln_f", "norm_f", "final_norm")


def _counted(parameter: Parameter, experts: Counter[tuple[str, str, tuple[int, ...]]]) -> Parameter:
    count = experts.get((parameter.name, parameter.role, parameter.shape))
    return replace(parameter, count=count) if count else parameter


def _parameters(
    module: str, leaf: str, info: TensorInfo, leaves: dict[str, TensorInfo], scheme: StoredScheme | None,
    arch: ModelArch, kv_heads: int, codes: set[str], sides: set[str],
) -> list[Parameter]:  # fmt: skip
    """The logical parameters that one tensor of a module stands for.

    Args:
        codes, sides: last name components of packed codes and of what belongs to them, in any format.
    """
    packed = bool(codes & leaves.keys()) or "weight_scale" in leaves or "weight_scale_inv" in leaves
    if scheme is not None and packed and leaf in sides:
        return []  # counted with the weight, by the scheme
    role = role_of(module) if leaf in ("weight", "bias") or leaf in codes else role_of(f"{module}.{leaf}")
    shape: tuple[int, ...] | None = info.shape
    if leaf in codes:
        shape = module_shape(leaves, scheme) if scheme is not None and len(info.shape) == 2 else None
    itemsize = 4 if leaf in _FLOAT32 else 0
    readable = leaf in codes and scheme is not None and get_format(scheme).readable(scheme)
    if shape is None or (info.dtype in ("U8", "F4") and not readable) or (scheme is None and packed):
        if len(info.shape) > 2 and module.endswith(".experts"):
            return [
                Parameter(f"{module}.{leaf}", info.shape[1:], _raw_role(role), count=info.shape[0], nbytes=info.nbytes)
            ]
        return [Parameter(f"{module}.{leaf}", info.shape, _raw_role(role), nbytes=info.nbytes)]
    name = f"{module}.{'weight' if leaf in codes else leaf}"
    looked_up = role == "vocab" and module.rpartition(".")[2] not in ("lm_head", "output")
    is_weight = name.endswith(".weight") and len(shape) == 2 and not looked_up
    quantized = is_weight and (packed or scheme is None or "weight" in leaves)
    if leaf == "bias" and role in ("row", "expert_row"):
        role = "replicated" if role == "row" else "expert"
    if len(shape) == 3 and ".experts" in name:
        # Experts stored as one tensor; which axis is cut does not change the bytes.
        inner: tuple[int, ...] = (shape[1], shape[2]) if role == "expert_row" else (shape[2], shape[1])
        return [Parameter(name, inner, role, count=shape[0], itemsize=itemsize)]
    if module.rpartition(".")[2] in _FUSED and shape and arch.head_dim:
        kv_rows = 2 * kv_heads * arch.head_dim
        if kv_heads and 0 < kv_rows < shape[0] and shape[0] - kv_rows == arch.heads * arch.head_dim:
            return [
                Parameter(name, (shape[0] - kv_rows, *shape[1:]), "column", linear=quantized, itemsize=itemsize),
                Parameter(name, (kv_rows, *shape[1:]), "kv", kv_heads, linear=quantized, itemsize=itemsize),
            ]
        role = "column"
    if role == "kv" and (not kv_heads or shape[0] % kv_heads or _LAYER.match(f"{module}.") is None):
        role = "column"
    heads = kv_heads if role == "kv" else 0
    unquantized = scheme is not None and not packed
    linear = quantized and (packed or (not unquantized and role_of(module) != "replicated"))
    return [Parameter(name, shape, role, heads, linear=linear, itemsize=itemsize)]


def _raw_role(role: Role) -> Role:
    """Packed tensors of unknown layout: cut along the first axis by the same share."""
    return {"row": "column", "kv": "column", "expert_row": "expert_column"}.get(role, role)  # type: ignore[return-value]
