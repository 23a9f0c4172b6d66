"""From what a user asks for to a recipe: presets, defaults, and what cannot be. No torch."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from vllm_quant_plugin.errors import UsageError
from vllm_quant_plugin.quantize.recipe import (
    BACKENDS,
    BITS,
    DATA_FREE,
    METHODS,
    Backend,
    Calibration,
    Method,
    Recipe,
    Smooth,
)
from vllm_quant_plugin.scheme import PER_CHANNEL, PER_TENSOR, ActivationScheme, Scheme, StorageFormat, WeightKind

FP8_BLOCK = (128, 128)
# What its own guides take for INT8.
LLMCOMPRESSOR_STRENGTH = 0.8
_LEVEL = re.compile(r"^(?P<bits>\d+)bit(?P<rest>(-(\d+g|channel|actorder|sym|asym))*)$")
LEVEL_EXAMPLES = "4bit, 4bit-64g, 4bit-128g, 4bit-actorder, 3bit, 8bit, W8A8, W8A16, W4A16, channel, tensor, block"


def default_method(level: str | None) -> Method:
    """The method that a preset is for where none is named: W8A8 is INT8, act-order is GPTQ's, the rest AWQ."""
    text = (level or "").strip().lower()
    if re.match(r"^w\d+a8$", text):
        return "int8"
    return "gptq" if text.endswith("actorder") else "awq"


@dataclass
class _Choice:
    bits: int | None = None
    group_size: int | None = None
    act_order: bool | None = None
    symmetric: bool | None = None
    activation: bool | None = None
    fp8: str = "channel"


def _read_level(method: Method, level: str) -> _Choice:
    choice, text = _Choice(), level.strip()
    found = _LEVEL.match(text.lower())
    weights = re.match(r"^w(\d+)a(8|16)$", text.lower())
    if found:
        choice.bits = int(found["bits"])
        for part in filter(None, found["rest"].split("-")):
            if part in ("sym", "asym"):
                choice.symmetric = part == "sym"
            elif part == "actorder":
                choice.act_order = True
            else:
                choice.group_size = PER_CHANNEL if part == "channel" else int(part[:-1])
    elif weights:
        choice.bits, choice.activation = int(weights[1]), weights[2] == "8"
    elif method == "fp8" and text.lower() in ("channel", "tensor", "block"):
        choice.fp8 = text.lower()
    else:
        raise UsageError(f"--level {level!r} is not known", f"use one of {LEVEL_EXAMPLES}")
    return choice


def _check_numbers(method: Method, bits: int, group_size: int) -> None:
    if bits not in BITS[method]:
        listed = ", ".join(map(str, BITS[method]))
        raise UsageError(f"{method} cannot store {bits} bits per weight", f"--bits is one of {listed} for {method}")
    if group_size != PER_CHANNEL and group_size < 1:
        raise UsageError(
            f"group size {group_size} is impossible", "--group-size is positive, or -1 for one per channel"
        )


def _integer_scheme(method: Method, choice: _Choice) -> Scheme:
    bits = choice.bits if choice.bits is not None else (8 if method == "int8" else 4)
    group_size = choice.group_size
    if group_size is None:
        group_size = PER_CHANNEL if method == "int8" else 128
    _check_numbers(method, bits, group_size)
    activation = choice.activation if choice.activation is not None else method == "int8"
    if activation and method != "int8":
        raise UsageError(f"{method} quantizes weights only", "use -m int8 for 8-bit activations")
    if choice.act_order and method != "gptq":
        raise UsageError(f"{method} has no act-order", "leave --act-order to gptq")
    symmetric = choice.symmetric if choice.symmetric is not None else method != "awq"
    if method == "int8":
        if activation and group_size != PER_CHANNEL:
            raise UsageError("INT8 W8A8 has one weight scale per channel", "leave --group-size, or use --level W8A16")
        dynamic = ActivationScheme("int") if activation else None
        return Scheme("int-quantized", "int", 8, group_size, symmetric, activation=dynamic)
    if method == "gptq":
        act_order = bool(choice.act_order) if choice.act_order is not None else True
        return Scheme("gptq", "int", bits, group_size, symmetric, act_order=act_order, zero_offset=1)
    # AutoAWQ's layout always carries zero points and packs 4 bits for everyone; the rest has a layout of its own.
    storage: StorageFormat = "awq" if method == "awq" and bits == 4 and not symmetric else "pack-quantized"
    return Scheme(storage, "int", bits, group_size, symmetric)


def _fp8_scheme(choice: _Choice) -> Scheme:
    if choice.bits not in (None, 8):
        raise UsageError(f"fp8 cannot store {choice.bits} bits per weight", "leave --bits out")
    if choice.symmetric is False or choice.act_order or choice.group_size not in (None, PER_CHANNEL):
        raise UsageError("fp8 takes no --group-size, --act-order or --asym", "use --level channel, tensor or block")
    kind: WeightKind = "fp8_e4m3"
    if choice.fp8 == "channel":
        token = ActivationScheme(kind) if choice.activation is not False else None
        return Scheme("float-quantized", kind, 8, PER_CHANNEL, activation=token)
    if choice.fp8 == "tensor":
        return Scheme("fp8", kind, 8, PER_TENSOR, activation=ActivationScheme(kind))
    group = ActivationScheme(kind, strategy="group", group_size=FP8_BLOCK[1])
    return Scheme("fp8", kind, 8, FP8_BLOCK[1], block=FP8_BLOCK, activation=group)


def _activations(method: Method, scheme: Scheme, activations: str | None) -> Scheme:
    """The scheme with activations quantized as asked for."""
    if activations is None or activations == "dynamic":
        if activations and scheme.activation is None:
            raise UsageError(f"{scheme.describe()} leaves activations alone", "leave --activations out, or use W8A8")
        return scheme
    if activations != "static":
        raise UsageError(f"--activations {activations!r} is not known", "it is dynamic or static")
    activation = scheme.activation
    if activation is None or scheme.block is not None:
        what = f"{method} {scheme.describe()}"
        raise UsageError(f"{what} has no static activations", "use -m int8, or -m fp8 --level tensor")
    if method == "fp8":
        # One scale for the input and one for the weight is what fp8's static checkpoints hold.
        scheme = replace(scheme, storage="fp8", group_size=PER_TENSOR)
    return replace(scheme, activation=replace(activation, strategy="tensor", dynamic=False))


def _smoothing(scheme: Scheme, smooth: str | float | None) -> Smooth | None:
    """SmoothQuant's strength; static INT8 activations get the best one unless told otherwise."""
    activation = scheme.activation
    fits = activation is not None and activation.kind == "int"
    if smooth is None:
        return "search" if fits and activation is not None and not activation.dynamic else None
    if smooth == "none":
        return None
    if not fits:
        raise UsageError(f"{scheme.describe()} has nothing to smooth", "SmoothQuant is for -m int8 with W8A8")
    if smooth == "search":
        return "search"
    try:
        strength = float(smooth)
    except ValueError:
        strength = -1.0
    if not 0 <= strength <= 1:
        raise UsageError(f"--smooth {smooth!r} is not known", "it is search, none, or a strength between 0 and 1")
    return strength


def _kv_storage(scheme: Scheme) -> Scheme:
    """The scheme in compressed-tensors, which llm-compressor writes and which can announce KV-cache scales."""
    if scheme.storage == "gptq":
        raise UsageError("GPTQ's layout has no place for KV-cache scales", "use another method, or leave --kv-cache")
    other: dict[str, StorageFormat] = {"awq": "pack-quantized", "fp8": "float-quantized"}
    return replace(scheme, storage=other.get(scheme.storage, scheme.storage))


def _check_backend(method: Method, scheme: Scheme, backend: Backend) -> None:
    if backend not in BACKENDS[method]:
        raise UsageError(f"--backend {backend!r} does not do {method}", f"use {' or '.join(BACKENDS[method])}")
    if backend in ("autoawq", "gptqmodel") and method == "awq" and scheme.storage != "awq":
        raise UsageError(f"--backend {backend} writes 4-bit AWQ with zero points only", "use the builtin backend")
    if backend == "llmcompressor" and (scheme.block is not None or not scheme.symmetric or scheme.activation is None):
        raise UsageError(f"--backend llmcompressor does not do {scheme.describe()} here", "use the builtin backend")


def make_recipe(
    method: str,
    *,
    level: str | None = None,
    bits: int | None = None,
    group_size: int | None = None,
    act_order: bool | None = None,
    symmetric: bool | None = None,
    backend: str | None = None,
    calibration: str | None = None,
    samples: int | None = None,
    seq_len: int | None = None,
    seed: int = 0,
    packing: bool = True,
    damp: float = 0.05,
    mse: float = 2.4,
    static_groups: bool = False,
    activations: str | None = None,
    smooth: str | float | None = None,
    kv_cache: bool = False,
) -> Recipe:
    """A validated recipe from what a user asks for; what is left out gets the method's default.

    Args:
        method: ``awq``, ``gptq``, ``fp8``, ``int8`` or ``rtn``.
        level: a preset, e.g. ``4bit-64g`` or ``W8A8``; explicit values win over it.
        bits, group_size, act_order, symmetric: see ``Scheme``.
        backend: None for the method's default.
        calibration: a text, JSON, JSONL or Parquet file or hub data set; None for the shipped text.
        samples, seq_len, seed, packing: see ``Calibration``.
        damp, mse, static_groups: see ``Recipe``.
        activations: ``dynamic`` or ``static``; static scales are measured on calibration data.
        smooth: ``search``, ``none`` or SmoothQuant's strength; default: ``search`` for static INT8 activations.
        kv_cache: measure and store the scales of an FP8 KV cache.

    Raises:
        UsageError: unknown names, values out of range, combinations that do not exist.
    """
    if method not in METHODS:
        raise UsageError(f"method {method!r} is not known", f"-m is one of {', '.join(METHODS)}")
    name: Method = method
    choice = _read_level(name, level) if level else _Choice()
    for field, value in (
        ("bits", bits),
        ("group_size", group_size),
        ("act_order", act_order),
        ("symmetric", symmetric),
    ):
        if value is not None:
            setattr(choice, field, value)
    scheme = _fp8_scheme(choice) if name == "fp8" else _integer_scheme(name, choice)
    scheme = _activations(name, scheme, activations)
    smoothing = _smoothing(scheme, smooth)
    if kv_cache:
        scheme = _kv_storage(scheme)
    chosen: Backend = backend or BACKENDS[name][0]  # type: ignore[assignment]  # checked next
    _check_backend(name, scheme, chosen)
    if chosen == "llmcompressor":
        scheme = _kv_storage(scheme)
        if smooth == "search":
            raise UsageError("llm-compressor takes one strength for all inputs", f"--smooth {LLMCOMPRESSOR_STRENGTH}")
        if smoothing == "search":
            smoothing = LLMCOMPRESSOR_STRENGTH
    wanted = Calibration(
        calibration, 128 if samples is None else samples, 512 if seq_len is None else seq_len, seed, packing
    )  # fmt: skip
    if wanted.samples < 1 or wanted.seq_len < 8:
        raise UsageError("calibration needs at least 1 sample of 8 tokens", "raise --calibration-samples or --seq-len")
    static = scheme.activation is not None and not scheme.activation.dynamic
    measured = name not in DATA_FREE or static or smoothing is not None or kv_cache or chosen == "llmcompressor"
    if not measured and calibration is not None:
        raise UsageError(
            f"{name} uses no calibration data",
            "leave --calibration out, or ask for --activations static, --smooth or --kv-cache",
        )
    if not 0 < damp < 1:
        raise UsageError(f"damp {damp} is out of range", "it lies between 0 and 1")
    data = wanted if measured else None
    return Recipe(name, scheme, chosen, data, damp, mse, static_groups, smooth=smoothing, kv_cache=kv_cache)
