"""The formats that are known, and what is asked of a whole model. No torch.

From another package: ``register_format``, or an entry point of the group ``vllm_quant_plugin.formats`` that leads to a
``Format``. Every command then knows it, and vLLM gets its methods.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from vllm_quant_kernels.scheme import WeightScheme
from vllm_quant_plugin.errors import CheckpointError
from vllm_quant_plugin.formats.base import EXPERT_COUNTS, Format, Headers, canonical_step, fits_columns
from vllm_quant_plugin.schemes import ModelScheme, StoredScheme

if TYPE_CHECKING:
    from vllm_quant_plugin.checkpoint import Checkpoint

ENTRY_POINTS = "vllm_quant_plugin.formats"
# Methods that vLLM had and dropped, and that nothing here reads.
REMOVED = ("squeezellm", "aqlm", "gguf", "marlin")
# As safetensors names them.
_FLOATS = ("F64", "F32", "F16", "BF16")
# Where a multimodal config keeps its language model's.
TEXT_CONFIGS = ("text_config", "llm_config", "language_config")
# Leaves of the experts of a layer that are one (E, ., .) tensor each.
_FUSED_EXPERTS = ("gate_up_proj", "down_proj", "w13", "w1", "w2", "w3", "gate_proj", "up_proj")
# Modules of Granite and JetMoE that hold the experts of a layer; vLLM calls them experts.
_GRANITE_EXPERTS = ("input_linear", "output_linear")
_FORMATS: dict[str, Format] = {}


def register_format(format: Format) -> None:
    """Add a format.

    Raises:
        ValueError: another format has its name, or one of its ``vllm_methods`` does not begin with ``vqp_``, where
            another plugin may have it.
    """
    foreign = [name for name in format.vllm_methods if not name.startswith("vqp_")]
    if foreign:
        raise ValueError(f"the method {foreign[0]!r} of format {format.name!r} does not begin with 'vqp_'")
    if _FORMATS.setdefault(format.name, format) is not format:
        raise ValueError(f"a format named {format.name!r} is registered already")


def unregister_format(name: str) -> None:
    """Remove a format that ``register_format`` added. Raises KeyError where there is none."""
    del _FORMATS[name]


@functools.cache
def _load() -> None:
    """Register the formats of installed packages."""
    for point in entry_points(group=ENTRY_POINTS):
        register_format(point.load())


def formats() -> tuple[Format, ...]:
    """All formats, in the order in which they were registered."""
    _load()
    return tuple(_FORMATS.values())


def format_named(name: str) -> Format:
    """Raises KeyError for an unknown name."""
    _load()
    return _FORMATS[name]


def vllm_methods() -> tuple[str, ...]:
    """The names of this plugin's vLLM methods, of all formats."""
    return tuple(dict.fromkeys(name for format in formats() for name in format.vllm_methods))


def code_leaves() -> set[str]:
    """Last name components that only packed codes have, in any format."""
    return {format.leaves[0] for format in formats()} - {"weight"}


def side_leaves() -> set[str]:
    """Last name components of what belongs to a module's codes, in any format, and of KV-cache scales."""
    return {"k_scale", "v_scale"}.union(*(format.leaves[1:] for format in formats()))


def get_format(scheme: StoredScheme) -> Format:
    """The format that ``scheme`` is stored in."""
    return format_named(scheme.storage.format)


def parse_quantization_config(config: Mapping[str, Any]) -> ModelScheme:
    """Read a checkpoint's ``quantization_config``.

    Raises:
        CheckpointError: unknown ``quant_method``, a missing, impossible or unknown field.
    """
    if not isinstance(config, Mapping):
        raise CheckpointError("config.json: quantization_config must be an object", "fix config.json")
    found = next((format for format in formats() if format.matches(config)), None)
    if found is None:
        method = str(config.get("quant_method") or "missing").lower()
        if method in REMOVED:
            raise CheckpointError(
                f"vLLM has no {method} method any more", "quantize the 16-bit model with vllm-quant quantize"
            )
        known = ", ".join(sorted({method for format in formats() for method in format.methods}))
        raise CheckpointError(f"quant_method {method!r} is not one this plugin reads", f"it reads {known}")
    try:
        model = found.parse(config)
    except CheckpointError:
        raise
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as err:
        raise CheckpointError(f"quantization_config is malformed: {err}", "fix config.json") from None
    return replace(model, raw=dict(config))


def stored_model(checkpoint: Checkpoint) -> ModelScheme | None:
    """The schemes of a checkpoint's modules, by its config and its headers; None for a 16-bit checkpoint.

    Raises:
        CheckpointError: a config of a kind that is not read, or quantized tensors without any config.
    """
    config = checkpoint.quantization_config
    if config:
        return refined_by(parse_quantization_config(config), checkpoint)
    codes = code_leaves()
    packed = next((f"{name}.{leaf}" for name, held in checkpoint.modules() for leaf in held if leaf in codes), None)
    if packed is not None:
        raise CheckpointError(
            f"{checkpoint.path}: {packed} is quantized, and neither config.json nor a file beside it says how",
            "add quantization_config to config.json, or the quantize_config.json or quant_config.json of its tool",
        )
    return None


def refined_by(model: ModelScheme, checkpoint: Checkpoint) -> ModelScheme:
    """``refined`` by a checkpoint's own headers and config."""
    return refined(model, list(checkpoint.modules()), checkpoint.config.get("architectures"))


def refined(
    model: ModelScheme, modules: Sequence[tuple[str, Headers]], architectures: Sequence[str] | None
) -> ModelScheme:
    """``model`` with all that a checkpoint's headers tell and its config does not.

    Args:
        modules: names and headers of the checkpoint's modules.
        architectures: of the model's config.
    """
    model = as_stored(model, modules)
    default = model.default
    if default is None or model.refused_in_tree or _is_mistral_3(architectures):
        return model  # vLLM's Mistral 3 knows the names of transformers
    format = get_format(default)
    own = next((leaf for _, held in modules for leaf in held if format.leaf(default, leaf) != leaf), None)
    return replace(model, refused_in_tree=f"scales named {own}") if own else model


def _is_mistral_3(architectures: Any) -> bool:
    return isinstance(architectures, list | tuple) and "Mistral3ForConditionalGeneration" in architectures


def stored_scheme(name: str, headers: Headers, model: ModelScheme | None, cls: str = "Linear") -> StoredScheme | None:
    """The scheme that the module is really stored in: the config may name more than was quantized."""
    scheme = model.scheme_for(name, cls) if model else None
    return scheme if scheme is not None and get_format(scheme).holds(scheme, headers) else None


def as_stored(model: ModelScheme, modules: Iterable[tuple[str, Headers]]) -> ModelScheme:
    """``model`` corrected by what the checkpoint holds: many configs do not list what was left in 16 bits.

    A router or a layer that a quantizer skipped has a ``weight`` in 16 or 32 bits and no codes: vLLM's own methods go
    by that as well. A module that the config leaves in 16 bits and that has codes is recorded: whoever loads it
    refuses it, since its scheme is not known. A quantized LM head counts where the dialect (FP8) has no word for it.

    Args:
        modules: names and headers of the checkpoint's modules.
    """
    kept, undeclared, modules = set(), set(), list(modules)
    model = _with_head(model, modules)
    for name, headers in modules:
        scheme = model.scheme_for(name)
        if scheme is None:
            if _has_codes(headers):
                undeclared.add(name)
        elif not get_format(scheme).holds(scheme, headers):
            weight = headers.get("weight")
            if (weight is not None and weight.dtype in _FLOATS) or _holds_experts(headers):
                kept.add(name)
                stem, _, leaf = name.rpartition(".")
                if leaf in _GRANITE_EXPERTS and weight is not None and len(weight.shape) == 3:
                    kept.add(f"{stem}.experts")
    return replace(model, kept=model.kept | kept, undeclared=model.undeclared | undeclared)


def _with_head(model: ModelScheme, modules: Sequence[tuple[str, Headers]]) -> ModelScheme:
    if model.lm_head or model.default is None:
        return model
    with_head = replace(model, lm_head=True)
    heads = ((name, headers) for name, headers in modules if name == "lm_head" or name.endswith(".lm_head"))
    return with_head if any(stored_scheme(name, headers, with_head) for name, headers in heads) else model


def _holds_experts(headers: Headers) -> bool:
    """Whether a module is the experts of a layer, in 16 bits and as one tensor for all of them."""
    found = [header for leaf, header in headers.items() if leaf in _FUSED_EXPERTS]
    return bool(found) and all(one.dtype in _FLOATS and len(one.shape) == 3 for one in found)


def _has_codes(headers: Headers) -> bool:
    """Whether a module's tensors are codes and scales, of any format."""
    if code_leaves() & set(headers):
        return True
    weight = headers.get("weight")
    return weight is not None and weight.dtype not in _FLOATS and bool(side_leaves() & set(headers))


def module_shape(headers: Headers, scheme: StoredScheme | None) -> tuple[int, int]:
    """(out_features, in_features) of a module, (0, 0) when it is no matrix."""
    if scheme is not None:
        return get_format(scheme).shape(scheme, headers)
    weight = headers.get("weight")
    return (weight.shape[0], weight.shape[1]) if weight is not None and len(weight.shape) == 2 else (0, 0)


def legal_tp(scheme: WeightScheme, in_features: int, candidates: tuple[int, ...] | range) -> list[int]:
    """Row-parallel TP sizes whose shards the plugin can cut: whole groups, or any divisor with act-order."""
    step = canonical_step(scheme)
    return [tp for tp in candidates if fits_columns(step, in_features, tp)]


def has_experts(config: Any) -> bool:
    """Whether a model config (config.json as a mapping, or transformers' object) describes a mixture of experts."""
    get = config.get if isinstance(config, Mapping) else lambda name: getattr(config, name, None)
    if any(get(name) for name in EXPERT_COUNTS):
        return True
    return any(get(part) is not None and has_experts(get(part)) for part in TEXT_CONFIGS)


def plugin_method(model: ModelScheme) -> str | None:
    """Our method's name for a checkpoint, None when only its kernels take part, or nothing of the plugin does.

    A mixture of schemes goes to the one method of its format that serves them all.
    """
    found = {get_format(scheme).method(scheme) for scheme in model.schemes()}
    if len(found) == 1:
        return found.pop()
    # Transforms of activations need a method that applies them, also where all weights are in 16 bits.
    together = {get_format(scheme).mixed_method for scheme in model.schemes()}
    together = together or {format_of(model).mixed_method if model.online else None}
    return together.pop() if len(together) == 1 and None not in found else None


def format_of(model: ModelScheme) -> Format:
    """The format of a model's config."""
    return next(format for format in formats() if model.method in format.methods)
