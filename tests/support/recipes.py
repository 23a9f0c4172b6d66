"""How a test checkpoint is quantized: what its config.json says and, apart from it, what is stored. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vllm_quant_kernels.scheme import E4M3, PER_CHANNEL, PER_TENSOR, ActivationScheme, Int, ValueType
from vllm_quant_plugin.formats.compressed_tensors import storage
from vllm_quant_plugin.formats.gptq import GPTQ_V1, GPTQ_V2
from vllm_quant_plugin.schemes import Storage, StoredScheme


@dataclass(frozen=True)
class Recipe:
    """A quantized checkpoint to be.

    Attributes:
        config: the quantization_config, as the tool that owns the format writes it; None for a
            16-bit checkpoint.
        scheme: how every linear module is stored that no override names; None: in 16 bits.
        overrides: (regular expression searched in the module's name, scheme or None for 16 bits).
        lm_head: scheme of lm_head, None for 16 bits.
        separate_g_idx: with act-order, q, k and v (gate and up) get permutations of their own.
        online: what the plugin makes of every linear module while loading a 16-bit checkpoint.
        online_options: its ``quantization_config`` in --hf-overrides, without quant_method.
        kv_scales: (k_scale, v_scale) to store for every attention layer.
        half_scales: scales are float16 numbers in every format, as those of a 16-bit model are.
    """

    config: Mapping[str, Any] | None
    scheme: StoredScheme | None
    overrides: tuple[tuple[str, StoredScheme | None], ...] = ()
    lm_head: StoredScheme | None = None
    separate_g_idx: bool = False
    online: StoredScheme | None = None
    online_options: Mapping[str, Any] = field(default_factory=dict)
    kv_scales: tuple[float, float] | None = None
    half_scales: bool = False

    def scheme_of(self, name: str) -> StoredScheme | None:
        """The scheme that module ``name`` is stored in, or gets while loading."""
        if name == "lm_head":
            return self.lm_head
        for pattern, scheme in self.overrides:
            if re.search(pattern, name):
                return scheme
        return self.scheme or self.online


def awq(bits: int, group: int, zeros: bool = True, **extra: Any) -> Recipe:
    """AutoAWQ's config.json."""
    overrides = tuple((re.escape(name), None) for name in extra.get("modules_to_not_convert") or ())
    config = {"quant_method": "awq", "bits": bits, "group_size": group, "zero_point": zeros, "version": "gemm"}
    return Recipe(
        {**config, **extra}, StoredScheme(Int(bits), group, symmetric=not zeros, storage=Storage("awq")), overrides
    )


def gptq_scheme(bits: int, group: int, sym: bool = True, act_order: bool = False, v2: bool = False) -> StoredScheme:
    return StoredScheme(Int(bits), group, symmetric=sym, act_order=act_order, storage=GPTQ_V2 if v2 else GPTQ_V1)


def gptq(
    bits: int,
    group: int,
    sym: bool = True,
    act_order: bool = False,
    v2: bool = False,
    *,
    overrides: tuple[tuple[str, StoredScheme | None], ...] = (),
    lm_head: bool = False,
    separate_g_idx: bool = False,
    **extra: Any,
) -> Recipe:
    """GPTQModel's config.json."""
    config = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group,
        "sym": sym,
        "desc_act": act_order,
        "checkpoint_format": "gptq_v2" if v2 else "gptq",
        "lm_head": lm_head,
        "pack_dtype": "int32",
        **extra,
    }
    scheme = gptq_scheme(bits, group, sym, act_order, v2)
    return Recipe(config, scheme, overrides, scheme if lm_head else None, separate_g_idx)


def compressed_tensors(
    layout: str,
    group: int = PER_CHANNEL,
    activation: ActivationScheme | None = None,
    *,
    sym: bool = True,
    kv_scales: tuple[float, float] | None = None,
) -> Recipe:
    """llm-compressor's config.json for 8-bit weights and activations in ``layout``."""
    value: ValueType = E4M3 if layout == "float-quantized" else Int(8)
    number = "float" if value == E4M3 else "int"
    strategy = {PER_CHANNEL: "channel", PER_TENSOR: "tensor"}.get(group, "group")
    weights = {
        "num_bits": 8,
        "type": number,
        "symmetric": sym,
        "strategy": strategy,
        "group_size": group if strategy == "group" else None,
        "dynamic": False,
    }
    inputs = activation and {
        "num_bits": 8,
        "type": number,
        "symmetric": activation.symmetric,
        "strategy": activation.strategy,
        "dynamic": activation.dynamic,
    }
    config: dict[str, Any] = {
        "quant_method": "compressed-tensors",
        "format": layout,
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": inputs}},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
    }
    if kv_scales:
        config["kv_cache_scheme"] = {
            "num_bits": 8,
            "type": "float",
            "strategy": "tensor",
            "symmetric": True,
            "dynamic": False,
        }
    scheme = StoredScheme(value, group, symmetric=sym, activation=activation, storage=storage(layout))
    return Recipe(config, scheme, kv_scales=kv_scales)


def _packed_group(bits: int, group: int, sym: bool, act_order: bool, targets: list[str]) -> dict[str, Any]:
    weights = {
        "num_bits": bits, "type": "int", "symmetric": sym, "strategy": "channel" if group == PER_CHANNEL else "group",
        "group_size": None if group == PER_CHANNEL else group, "actorder": "group" if act_order else None,
    }  # fmt: skip
    return {"targets": targets, "weights": weights, "input_activations": None, "format": "pack-quantized"}


def packed(bits: int, group: int, sym: bool = True, act_order: bool = False) -> Recipe:
    """llm-compressor's config.json for weights in ``pack-quantized``."""
    config = {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"],
        "config_groups": {"group_0": _packed_group(bits, group, sym, act_order, ["Linear"])},
    }  # fmt: skip
    scheme = StoredScheme(Int(bits), group, symmetric=sym, act_order=act_order, storage=storage("pack-quantized"))
    return Recipe(config, scheme)


def mixture(first: Recipe, bits: int, group: int, pattern: str) -> Recipe:
    """``first`` (compressed-tensors), but the modules that match ``pattern`` packed with ``bits`` bits."""
    config = dict(first.config or {})
    groups = {"group_0": _packed_group(bits, group, True, False, [f"re:.*{pattern}"])}
    groups["group_1"] = {**config["config_groups"]["group_0"], "format": config["format"]}
    scheme = StoredScheme(Int(bits), group, storage=storage("pack-quantized"))
    return Recipe({**config, "format": "mixed-precision", "config_groups": groups}, first.scheme, ((pattern, scheme),))


def sparse(recipe: Recipe) -> Recipe:
    """``recipe`` with the sparsity_config of a 2:4 model whose zeros are stored: vLLM refuses to read it."""
    sparsity = {"format": "dense", "sparsity_structure": "2:4", "targets": ["Linear"], "ignore": []}
    return Recipe({**(recipe.config or {}), "sparsity_config": sparsity}, recipe.scheme)


def fp8(
    *, block: tuple[int, int] | None = None, static: bool = False, ignored: tuple[str, ...] = (), lm_head: bool = False
) -> Recipe:
    """config.json of ``quant_method: fp8`` checkpoints."""
    config: dict[str, Any] = {
        "quant_method": "fp8",
        "activation_scheme": "static" if static else "dynamic",
        "ignored_layers": [*([] if lm_head else ["lm_head"]), *ignored],
    }
    if block:
        config["weight_block_size"] = list(block)
        activation = ActivationScheme(E4M3, strategy="group", group_size=block[1])
    else:
        activation = ActivationScheme(E4M3, strategy="tensor" if static else "token", dynamic=not static)
    scheme = StoredScheme(
        E4M3, block[1] if block else PER_TENSOR, block=block, activation=activation, storage=Storage("fp8")
    )
    return Recipe(config, scheme, tuple((re.escape(name), None) for name in ignored), scheme if lm_head else None)


def online_int8(activations: str = "dynamic", group: int = PER_CHANNEL) -> Recipe:
    """A 16-bit checkpoint that ``vqp_int8`` quantizes while loading."""
    activation = ActivationScheme(Int(8)) if activations == "dynamic" else None
    options: dict[str, Any] = {} if activations == "dynamic" else {"activations": activations}
    if group != PER_CHANNEL:
        options["group_size"] = group
    scheme = StoredScheme(Int(8), group, activation=activation)
    return Recipe(None, None, online=scheme, online_options=options)


def online_fp8(block: tuple[int, int] | None = None) -> Recipe:
    """A 16-bit checkpoint that ``vqp_fp8`` quantizes while loading."""
    scheme = StoredScheme(E4M3, block[1] if block else PER_CHANNEL, block=block)
    return Recipe(None, None, online=scheme, online_options={"weight_block_size": list(block)} if block else {})


TOKEN_INT8 = ActivationScheme(Int(8))
TOKEN_INT8_ASYM = ActivationScheme(Int(8), symmetric=False)
STATIC_INT8 = ActivationScheme(Int(8), strategy="tensor", dynamic=False)
STATIC_INT8_ASYM = ActivationScheme(Int(8), strategy="tensor", dynamic=False, symmetric=False)
TOKEN_FP8 = ActivationScheme(E4M3)
STATIC_FP8 = ActivationScheme(E4M3, strategy="tensor", dynamic=False)
