"""What a quantized module is, apart from how it is stored. No torch.

A ``Scheme`` describes one linear module; a ``ModelScheme`` maps module names to schemes.
Terms are the field's: ``group_size`` counts input features per scale, -1 is one scale per
output channel, 0 one scale for the whole tensor.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from vllm_quant_plugin.errors import CheckpointError

PER_CHANNEL = -1
PER_TENSOR = 0

WeightKind = Literal["int", "fp8_e4m3", "fp8_e5m2"]
ActStrategy = Literal["token", "tensor", "group"]
StorageFormat = Literal["awq", "gptq", "fp8", "pack-quantized", "int-quantized", "float-quantized", "dense"]


@dataclass(frozen=True)
class ActivationScheme:
    """How activations are quantized before the GEMM (W8A8). Absent means 16-bit activations."""

    kind: WeightKind
    bits: int = 8
    strategy: ActStrategy = "token"
    dynamic: bool = True
    symmetric: bool = True
    group_size: int | None = None


@dataclass(frozen=True)
class Scheme:
    """The quantization of one linear module.

    Attributes:
        storage: the on-disk format, one file in ``formats/`` each.
        kind: integer codes or an 8-bit float.
        bits: bits per weight, 2 to 8.
        group_size: input features per scale; ``PER_CHANNEL`` or ``PER_TENSOR``.
        symmetric: True when the zero point is the middle code and not stored.
        act_order: True when ``g_idx`` permutes the input features over groups.
        block: (N, K) of one scale for block-wise FP8, else None.
        zero_offset: what is added to a stored zero point to get the true one
            (GPTQ v1 stores zero - 1).
        activation: activation quantization, or None for weight-only.
    """

    storage: StorageFormat
    kind: WeightKind = "int"
    bits: int = 4
    group_size: int = 128
    symmetric: bool = True
    act_order: bool = False
    block: tuple[int, int] | None = None
    zero_offset: int = 0
    activation: ActivationScheme | None = None

    def group_of(self, in_features: int) -> int:
        """Input features that share one scale, for a module of ``in_features``."""
        return self.group_size if self.group_size > 0 else in_features

    def groups(self, in_features: int) -> int:
        """Number of groups along the input, ceil(in_features / group)."""
        return -(-in_features // self.group_of(in_features))

    def legal_tp(self, in_features: int, candidates: Iterable[int] = (1, 2, 4, 8, 16)) -> list[int]:
        """Row-parallel TP sizes whose shard is a whole number of groups.

        Act-order keeps full scales on each rank and gathers by ``g_idx``, so any divisor works.
        """
        step = self.group_size if self.group_size > 0 and not self.act_order else 1
        if self.block is not None:
            step = self.block[1]
        return [tp for tp in candidates if in_features % tp == 0 and (tp == 1 or in_features // tp % step == 0)]

    def describe(self) -> str:
        """A short human name, e.g. ``INT4 g128 asym`` or ``FP8 block 128x128``."""
        name = {"int": f"INT{self.bits}", "fp8_e4m3": "FP8", "fp8_e5m2": "FP8 E5M2"}[self.kind]
        if self.block:
            name += f" block {self.block[0]}x{self.block[1]}"
        elif self.group_size == PER_CHANNEL:
            name += " channel"
        elif self.group_size == PER_TENSOR:
            name += " tensor"
        else:
            name += f" g{self.group_size}"
        if self.kind == "int":
            name += " sym" if self.symmetric else " asym"
        if self.act_order:
            name += " act-order"
        if self.activation is not None:
            act = self.activation
            name += f" A{act.bits} {'dynamic' if act.dynamic else 'static'} {act.strategy}"
            if not act.symmetric:
                name += " asym"
        return name


@dataclass(frozen=True)
class Rule:
    """One line of a ``ModelScheme``: modules that match ``pattern`` get ``scheme`` (None: left in 16 bits).

    ``mode`` is how the pattern is read: ``path`` (a run of whole dotted components, anywhere in
    the module name), ``contains`` (a substring), ``regex`` (``re.match`` from the start),
    ``class`` (the module's class name, e.g. ``Linear``).
    """

    pattern: str
    scheme: Scheme | None
    mode: Literal["path", "contains", "regex", "class"] = "regex"

    def matches(self, name: str, cls: str = "Linear") -> bool:
        if self.mode == "path":
            return f".{self.pattern}." in f".{name}."
        if self.mode == "contains":
            return self.pattern in name
        if self.mode == "class":
            return self.pattern == cls
        return re.match(self.pattern, name) is not None


@dataclass(frozen=True)
class ModelScheme:
    """Schemes for a whole model: the first rule that matches wins, then ``default``.

    Attributes:
        method: the checkpoint's own ``quant_method`` (``awq``, ``gptq``, ``fp8``, ``compressed-tensors``).
        default: scheme for linear modules inside the decoder layers.
        rules: overrides and exclusions, first match wins.
        lm_head: whether ``lm_head`` follows the rules and default; otherwise it is 16-bit.
        kv_cache: ``fp8`` when the checkpoint carries KV-cache scales.
        raw: the quantization_config as found on disk.
    """

    method: str
    default: Scheme | None
    rules: tuple[Rule, ...] = ()
    lm_head: bool = False
    kv_cache: str | None = None
    raw: dict[str, object] = field(default_factory=dict, compare=False, hash=False)

    def scheme_for(self, name: str, cls: str = "Linear") -> Scheme | None:
        """Scheme of the module ``name`` (checkpoint naming), None when it is not quantized."""
        for rule in self.rules:
            if rule.matches(name, cls):
                return rule.scheme
        if not self.lm_head and (name == "lm_head" or name.endswith(".lm_head")):
            return None
        return self.default

    def scheme_for_fused(self, name: str, parts: Sequence[str], cls: str = "Linear") -> Scheme | None:
        """Scheme of a vLLM module that fuses checkpoint modules, e.g. qkv_proj.

        Args:
            name: the fused module's name, ending in the fused part.
            parts: the last name components on disk, e.g. ``["q_proj", "k_proj", "v_proj"]``.

        Raises:
            CheckpointError: the parts do not share one scheme.
        """
        stem = name.rpartition(".")[0]
        names = [f"{stem}.{part}" if stem else part for part in parts]
        found = [self.scheme_for(n, cls) for n in names]
        if any(s != found[0] for s in found[1:]):
            listed = ", ".join(f"{n}: {s.describe() if s else '16-bit'}" for n, s in zip(names, found, strict=True))
            raise CheckpointError(
                f"modules that vLLM fuses into {name} have different schemes ({listed})",
                "quantize them alike: vLLM loads them as one matrix",
            )
        return found[0]

    def describe(self) -> str:
        """A short human name: the one scheme's, or all bit-widths that the config names, e.g. ``mixed 3/4/8-bit``."""
        found = list(dict.fromkeys(s for s in (self.default, *(rule.scheme for rule in self.rules)) if s is not None))
        if not found:
            return "none"
        bits = sorted({s.bits for s in found})
        if len(found) == 1 or len(bits) == 1:
            return found[0].describe() + (" and others" if len(found) > 1 else "")
        return f"mixed {'/'.join(map(str, bits))}-bit"

    def with_rules(self, rules: Iterable[Rule]) -> ModelScheme:
        """A copy with ``rules`` tried before the present ones."""
        return replace(self, rules=(*rules, *self.rules))
