"""Which modules of a checkpoint are quantized, how, and in what storage. No torch.

A ``StoredScheme`` is a ``WeightScheme`` (what the weight is) with a ``Storage`` (how the checkpoint keeps it); a
``ModelScheme`` maps module names to them. The formats (``vllm_quant_plugin.formats``) read and write both.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from vllm_quant_kernels.scheme import WeightScheme
from vllm_quant_plugin.errors import CheckpointError
from vllm_quant_plugin.transforms import Application


@dataclass(frozen=True)
class Storage:
    """How a checkpoint keeps a weight: the name of a format, and that format's own options.

    The options are those that tensors of one checkpoint may differ in, e.g. GPTQ's ``zero_offset``. Only the format
    itself reads them.
    """

    format: str
    options: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, format: str, **options: Any) -> Storage:
        return cls(format, tuple(sorted(options.items())))

    def __getitem__(self, name: str) -> Any:
        return dict(self.options)[name]

    @property
    def label(self) -> str:
        """The most specific name: of the layout where the format has several, else of the format."""
        return str(dict(self.options).get("layout", self.format))


@dataclass(frozen=True)
class StoredScheme(WeightScheme):
    """The quantization of one linear module, as its checkpoint stores it."""

    storage: Storage = Storage("dense")

    @classmethod
    def of(cls, weight: WeightScheme, storage: Storage) -> StoredScheme:
        """``weight``, stored as ``storage`` says."""
        return cls(**{f.name: getattr(weight, f.name) for f in fields(WeightScheme)}, storage=storage)

    def to_json(self) -> dict[str, Any]:
        """Plain values; ``from_json`` is its inverse."""
        return {**self.weight.to_json(), "storage": {"format": self.storage.format, **dict(self.storage.options)}}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> StoredScheme:
        """The scheme that ``to_json`` wrote."""
        return cls.of(WeightScheme.from_json(values), Storage.of(**values["storage"]))

    @property
    def weight(self) -> WeightScheme:
        """The scheme without its storage: equal for equal weights of any format."""
        return WeightScheme(**{f.name: getattr(self, f.name) for f in fields(WeightScheme)})


@dataclass(frozen=True)
class Rule:
    """One line of a ``ModelScheme``: modules that match ``pattern`` get ``scheme`` (None: left in 16 bits).

    ``mode`` is how the pattern is read: ``path`` (a run of whole dotted components, anywhere in
    the module name), ``contains`` (a substring), ``regex`` (``re.match`` from the start),
    ``class`` (the module's class name, e.g. ``Linear``).
    """

    pattern: str
    scheme: StoredScheme | None
    mode: Literal["path", "contains", "regex", "class"] = "regex"

    def matches(self, name: str, cls: str = "Linear") -> bool:
        if self.mode == "path":
            return f".{self.pattern}." in f".{name}."
        if self.mode == "contains":
            return self.pattern in name
        if self.mode == "class":
            return self.pattern == cls
        return re.match(self.pattern, name) is not None


def names_module(found: Collection[str], name: str) -> bool:
    """Whether ``found`` holds ``name``, which may have leading components that the checkpoint's names lack."""
    while name not in found:
        _, dot, name = name.partition(".")
        if not dot or name[0].isdigit():
            return False
    return True


@dataclass(frozen=True)
class ModelScheme:
    """Schemes for a whole model: the first rule that matches wins, then ``default``.

    Attributes:
        method: the checkpoint's own ``quant_method`` (``awq``, ``gptq``, ``fp8``, ``compressed-tensors``).
        default: scheme for linear modules inside the decoder layers.
        rules: overrides and exclusions, first match wins.
        lm_head: whether ``lm_head`` follows the rules and default; otherwise it is 16-bit.
        kv_cache: ``fp8`` when the checkpoint carries KV-cache scales.
        transforms: of weights and activations, in the order in which they were applied.
        refused_in_tree: what vLLM's own reader of the config refuses or does not see, "" for nothing.
        raw: the quantization_config as found on disk.
        kept: modules that the checkpoint stores in 16 bits, whatever the rules say (``as_stored``).
        undeclared: modules that the checkpoint stores quantized, though the rules leave them in 16 bits.
    """

    method: str
    default: StoredScheme | None
    rules: tuple[Rule, ...] = ()
    lm_head: bool = False
    kv_cache: str | None = None
    transforms: tuple[Application, ...] = ()
    refused_in_tree: str = ""
    raw: dict[str, object] = field(default_factory=dict, compare=False, hash=False)
    kept: frozenset[str] = frozenset()
    undeclared: frozenset[str] = frozenset()

    def schemes(self) -> Iterator[StoredScheme]:
        """Every scheme that the model names, each once."""
        found = (self.default, *(rule.scheme for rule in self.rules))
        yield from dict.fromkeys(scheme for scheme in found if scheme is not None)

    @property
    def online(self) -> tuple[Application, ...]:
        """The transforms that run at every step."""
        return tuple(one for one in self.transforms if one.online)

    def online_at(self, name: str, cls: str = "Linear") -> tuple[Application, ...]:
        """Those of the module ``name`` (checkpoint naming)."""
        return tuple(one for one in self.online if one.matches(name, cls))

    def transform_held_by(self, name: str) -> Application | None:
        """The transform whose tensors are stored as those of the module ``name``, which the model does not have."""
        return next((one for one in self.transforms if name.endswith(f".{one.leaf}")), None)

    def scheme_for(self, name: str, cls: str = "Linear") -> StoredScheme | None:
        """StoredScheme of the module ``name`` (checkpoint naming), None when it is not quantized."""
        if self.kept and names_module(self.kept, name):
            return None
        for rule in self.rules:
            if rule.matches(name, cls):
                return rule.scheme
        if not self.lm_head and (name == "lm_head" or name.endswith(".lm_head")):
            return None
        return self.default

    def scheme_for_fused(self, name: str, parts: Sequence[str], cls: str = "Linear") -> StoredScheme | None:
        """StoredScheme of a vLLM module that fuses checkpoint modules, e.g. qkv_proj.

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

    def refuse_undeclared(self, *names: str) -> None:
        """Raise CheckpointError where one of the modules ``names`` is stored quantized against the config."""
        for name in names:
            if self.undeclared and names_module(self.undeclared, name):
                raise CheckpointError(
                    f"{name} is quantized in the checkpoint, but quantization_config leaves it in 16 bits",
                    "take it off the list of modules that are not converted, or download config.json again",
                )

    def describe(self) -> str:
        """A short human name: the one scheme's, or all bit-widths that the config names, e.g. ``mixed 3/4/8-bit``."""
        found = list(self.schemes())
        if not found:
            return "none"
        bits = sorted({s.bits for s in found})
        if len(found) == 1 or len(bits) == 1:
            return found[0].describe() + (" and others" if len(found) > 1 else "")
        return f"mixed {'/'.join(map(str, bits))}-bit"
