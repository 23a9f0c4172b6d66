"""The formats that are known, and what is asked of a whole model. No torch.

From another package: ``register_format``, or an entry point of the group ``vllm_quant_plugin.formats`` that leads to a
``Format``. Every command then knows it, and vLLM gets its methods.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib.metadata import entry_points
from typing import Any

from vllm_quant_kernels.scheme import WeightScheme
from vllm_quant_plugin.errors import CheckpointError
from vllm_quant_plugin.formats.base import EXPERT_COUNTS, Format, Headers, canonical_step, fits_columns
from vllm_quant_plugin.formats.host import Host
from vllm_quant_plugin.schemes import ModelScheme, StoredScheme

ENTRY_POINTS = "vllm_quant_plugin.formats"
# Methods that vLLM had and dropped, and that nothing here reads.
REMOVED = ("squeezellm", "aqlm", "gguf", "marlin")
# As safetensors names them.
_FLOATS = ("F64", "F32", "F16", "BF16")
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


def stored_scheme(name: str, headers: Headers, model: ModelScheme | None) -> StoredScheme | None:
    """The scheme that the module is really stored in: the config may name more than was quantized."""
    scheme = model.scheme_for(name) if model else None
    return scheme if scheme is not None and get_format(scheme).holds(scheme, headers) else None


def as_stored(model: ModelScheme, modules: Iterable[tuple[str, Headers]]) -> ModelScheme:
    """``model`` corrected by what the checkpoint holds: many configs do not list what was left in 16 bits.

    A router or a layer that a quantizer skipped has a ``weight`` in 16 or 32 bits and no codes: vLLM's own methods go
    by that as well. A module that the config leaves in 16 bits and that has codes is recorded: whoever loads it
    refuses it, since its scheme is not known.

    Args:
        modules: names and headers of the checkpoint's modules.
    """
    kept, undeclared = set(), set()
    for name, headers in modules:
        scheme = model.scheme_for(name)
        if scheme is None:
            if _has_codes(headers):
                undeclared.add(name)
        elif not get_format(scheme).holds(scheme, headers):
            weight = headers.get("weight")
            if weight is not None and weight.dtype in _FLOATS:
                kept.add(name)
    return replace(model, kept=model.kept | kept, undeclared=model.undeclared | undeclared)


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
    return any(get(name) for name in EXPERT_COUNTS)


def why_in_tree_rejects(model: ModelScheme, host: Host, *, experts: bool = False) -> str | None:
    """The first reason for which vLLM without this plugin does not serve ``model`` on ``host``, None when it does.

    Args:
        experts: the model is a mixture of experts.
    """
    if model.online:
        reason = _format_of(model).transforms_in_tree(model, host)
        if reason:
            return reason
    for scheme in model.schemes():
        reason = get_format(scheme).experts_in_tree(host) if experts else None
        reason = reason or get_format(scheme).in_tree(scheme, host)
        if reason:
            return reason
    return None


def plugin_method(model: ModelScheme) -> str | None:
    """Our method's name for a checkpoint, None when only its kernels take part, or nothing of the plugin does."""
    found = {get_format(scheme).method(scheme) for scheme in model.schemes()}
    ours = found.pop() if len(found) == 1 else None
    if ours is None and model.online and all(get_format(scheme).readable(scheme) for scheme in model.schemes()):
        # A kernel in vLLM's own method is not enough: the method applies the transforms.
        return _format_of(model).transforms_method()
    return ours


def _format_of(model: ModelScheme) -> Format:
    return next(format for format in formats() if model.method in format.methods)
