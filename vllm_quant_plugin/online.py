"""Quantization of a 16-bit checkpoint while it loads: the scheme that a method's options give. No torch, no vLLM.

Options come from ``--hf-overrides '{"quantization_config": {...}}'``:

vqp_fp8   ``weight_block_size`` ([128, 128]; else one scale per output channel), ``activations`` (``"dynamic"``, the
          default: FP8 with one scale per token, or per token and block of columns; ``"none"``: 16 bits)
vqp_int8  ``activations`` (``"dynamic"``, the default: W8A8 with one scale per token; ``"none"``: W8A16),
          ``group_size`` (-1, one scale per output channel; another needs ``activations: none``)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vllm_quant_kernels.scheme import E4M3, PER_CHANNEL, ActivationScheme, Int
from vllm_quant_plugin.errors import CheckpointError
from vllm_quant_plugin.schemes import ModelScheme, Rule, StoredScheme

Options = Mapping[str, Any]
# Other names that vLLM knows a method by.
ALIASES = {"int8": "vqp_int8"}
_COMMON = ("quant_method", "modules_to_not_convert")


def online_scheme(method: str, options: Options) -> ModelScheme:
    """The scheme for every linear layer but the LM head and ``modules_to_not_convert``.

    Args:
        method: a ``--quantization`` value; aliases as in ``ALIASES``.
        options: the ``quantization_config``; may be empty.

    Raises:
        CheckpointError: the method quantizes nothing while loading, or an option is unknown or impossible.
    """
    name = ALIASES.get(method, method)
    scheme_of = _METHODS.get(name)
    if scheme_of is None:
        raise CheckpointError(
            f"--quantization {method} needs a checkpoint that is quantized already",
            "quantize it with `vllm-quant quantize`, or use vqp_int8 or vqp_fp8, which quantize while loading",
        )
    rules = tuple(Rule(str(module), None, "path") for module in options.get("modules_to_not_convert") or ())
    return ModelScheme(name, scheme_of(options), rules, raw=dict(options))


def quantizes_online(method: str) -> bool:
    """Whether ``method`` is one of this plugin's that quantize while loading."""
    return ALIASES.get(method, method) in _METHODS


def _check(name: str, options: Options, known: tuple[str, ...]) -> None:
    """Refuse options that the method does not have, since an ignored typing error would change numbers."""
    unknown = sorted(set(options) - set(known) - set(_COMMON))
    if unknown:
        raise CheckpointError(
            f"{name}: unknown option {unknown[0]!r} in quantization_config",
            f"the options are {', '.join((*known, _COMMON[1]))}",
        )
    activations = options.get("activations", "dynamic")
    if activations not in ("dynamic", "none"):
        raise CheckpointError(f"{name}: activations {activations!r} is not known", "it is 'dynamic' or 'none'")


def _fp8(options: Options) -> StoredScheme:
    _check("vqp_fp8", options, ("weight_block_size", "activations"))
    block, dynamic = options.get("weight_block_size"), options.get("activations", "dynamic") == "dynamic"
    if block is None:
        activation = ActivationScheme(E4M3) if dynamic else None
        return StoredScheme(E4M3, PER_CHANNEL, activation=activation)
    if not isinstance(block, list | tuple) or len(block) != 2 or not all(isinstance(b, int) and b > 0 for b in block):
        raise CheckpointError(f"vqp_fp8: weight_block_size {block!r} is impossible", "it is two positive integers")
    activation = ActivationScheme(E4M3, strategy="group", group_size=block[1]) if dynamic else None
    return StoredScheme(E4M3, block[1], block=(block[0], block[1]), activation=activation)


def _int8(options: Options) -> StoredScheme:
    _check("vqp_int8", options, ("activations", "group_size"))
    dynamic = options.get("activations", "dynamic") == "dynamic"
    group_size = options.get("group_size", PER_CHANNEL)
    if not isinstance(group_size, int) or (group_size != PER_CHANNEL and group_size <= 0):
        raise CheckpointError(f"vqp_int8: group_size {group_size!r} is impossible", "it is -1 or positive")
    if group_size != PER_CHANNEL and dynamic:
        raise CheckpointError("vqp_int8: group_size needs activations 'none' (W8A16)", "leave group_size out")
    return StoredScheme(Int(8), group_size, activation=ActivationScheme(Int(8)) if dynamic else None)


_METHODS: dict[str, Callable[[Options], StoredScheme]] = {"vqp_fp8": _fp8, "vqp_int8": _int8}
