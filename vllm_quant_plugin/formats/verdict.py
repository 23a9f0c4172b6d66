"""Who serves a checkpoint: vLLM's methods, the same with this plugin's kernels, a method of this plugin, or nobody.

The answer is given per part (the modules of one kind and scheme) and device, and one method serves the whole
checkpoint: as soon as one part needs the plugin, all of them go to it. ``inspect``, ``convert``, ``quantize``, ``plan``
and vLLM's own question which method takes a checkpoint all ask here. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from vllm_quant_plugin.errors import UsageError
from vllm_quant_plugin.formats.base import Headers, Kind
from vllm_quant_plugin.formats.host import DeviceType, Host
from vllm_quant_plugin.formats.registry import (
    format_of,
    get_format,
    has_experts,
    module_shape,
    plugin_method,
    stored_scheme,
)
from vllm_quant_plugin.schemes import ModelScheme, StoredScheme

if TYPE_CHECKING:
    from vllm_quant_plugin.checkpoint import Checkpoint

Server = Literal["vllm", "vllm with kernels", "plugin", "nobody"]
# vLLM's CPU kernels work on so many features at once.
KERNEL_STEP = 32
_EXPERT = re.compile(r"\.experts\.")
_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "tok_embeddings", "embed_in")
# Names under which experts are found where only the config is known.
_EXPERT_NAMES = [
    f"model.layers.{layer}.{stem}.experts.0.{leaf}"
    for layer in (0, 1, 3, 7)
    for stem in ("mlp", "block_sparse_moe", "feed_forward")
    for leaf in ("gate_proj", "up_proj", "down_proj", "w1", "w2", "w3", "gate_up_proj")
]


def kind_of(name: str) -> Kind:
    """What vLLM makes of the module ``name`` of a checkpoint."""
    leaf = name.rpartition(".")[2]
    if _EXPERT.search(f"{name}."):
        return "experts"
    if leaf == "lm_head":
        return "lm_head"
    return "embedding" if leaf in _EMBEDDINGS else "linear"


@dataclass(frozen=True)
class Part:
    """Modules that are served alike.

    Attributes:
        name: of the first of them.
        scheme: how the checkpoint stores them.
        out_features, in_features: of the first, 0 where only the config is known.
    """

    name: str
    kind: Kind
    scheme: StoredScheme
    out_features: int = 0
    in_features: int = 0

    @property
    def key(self) -> tuple[Kind, StoredScheme, bool]:
        return _key(self.kind, self.scheme, self.out_features, self.in_features)


def _key(kind: Kind, scheme: StoredScheme, n: int, k: int) -> tuple[Kind, StoredScheme, bool]:
    """What is served alike: of the sizes only whether the steps of vLLM's kernels fit."""
    return kind, scheme, bool(n % KERNEL_STEP or k % KERNEL_STEP)


@dataclass(frozen=True)
class PartVerdict:
    """Who can serve a part.

    Attributes:
        in_tree: why vLLM's own method does not, None where it does.
        kernel: name of vLLM's kernel where ``in_tree`` is None, "" where it depends on the GPU.
        with_kernel: vLLM's method does with this plugin's kernel.
        plugin: why this plugin's methods do not, None where they do.
    """

    part: Part
    in_tree: str | None
    kernel: str
    with_kernel: bool
    plugin: str | None


@dataclass(frozen=True)
class Verdict:
    """Who serves a whole checkpoint on one host.

    Attributes:
        in_tree: why vLLM alone does not, None when it does.
        plugin: why none of this plugin's methods does, None when ``method`` does.
        method: the name of this plugin's method, None where it has none.
        kv_cache_dtype: what ``--kv-cache-dtype`` must say because vLLM has no FP8 KV cache on the host, else "".
    """

    parts: tuple[PartVerdict, ...]
    in_tree: str | None
    plugin: str | None
    method: str | None
    server: Server
    kv_cache_dtype: str = ""

    @property
    def claimed(self) -> str | None:
        """The method that takes the checkpoint without a flag, None where vLLM keeps it."""
        return self.method if self.server == "plugin" else None

    @property
    def why_nobody(self) -> str:
        """For ``nobody``: both reasons."""
        return f"in-tree vLLM does not serve {self.in_tree}; this plugin does not serve {self.plugin}"

    def of(self, kind: Kind, scheme: StoredScheme, n: int, k: int) -> PartVerdict | None:
        """The verdict on an (n, k) module of one kind and scheme."""
        wanted = _key(kind, scheme, n, k)
        return next((p for p in self.parts if p.part.key == wanted), None)


def stored_parts(modules: Iterable[tuple[str, Headers]], model: ModelScheme) -> list[Part]:
    """The quantized parts of a checkpoint, from its headers; the first module of each stands for it."""
    found: dict[tuple[Kind, StoredScheme, bool], Part] = {}
    for name, headers in modules:
        kind = kind_of(name)
        scheme = stored_scheme(name, headers, model, "Embedding" if kind == "embedding" else "Linear")
        if scheme is not None:
            part = Part(name, kind, scheme, *module_shape(headers, scheme))
            found.setdefault(part.key, part)
    return list(found.values())


def named_parts(modules: Iterable[tuple[str, StoredScheme, int, int]]) -> list[Part]:
    """The parts of modules that are to be written: (name, scheme, out_features, in_features) each."""
    found: dict[tuple[Kind, StoredScheme, bool], Part] = {}
    for name, scheme, n, k in modules:
        part = Part(name, kind_of(name), scheme, n, k)
        found.setdefault(part.key, part)
    return list(found.values())


def check_output(model: ModelScheme, parts: Sequence[Part], what: str) -> dict[DeviceType, Verdict]:
    """Device -> who serves what is about to be written.

    Args:
        what: names the output in the message.

    Raises:
        UsageError: nobody serves it on any device.
    """
    found = {host.device: judge(model, host, parts) for host in (Host.local("cpu"), Host("cuda"))}
    if all(verdict.server == "nobody" for verdict in found.values()):
        raise UsageError(
            f"{what} would not load anywhere: {found['cuda'].why_nobody}",
            "choose another format, or leave those modules in 16 bits",
        )
    return found


def described_parts(model: ModelScheme, config: Any) -> list[Part]:
    """The parts that a quantization config means for a model, where its tensors are not at hand.

    Args:
        config: the model's config (config.json as a mapping, or transformers' object).
    """
    return list(_described(model, config))


def _described(model: ModelScheme, config: Any) -> Iterator[Part]:
    schemes = list(model.schemes())
    experts = {scheme for name in _EXPERT_NAMES if (scheme := model.scheme_for(name)) is not None}
    mixture = has_experts(config)
    # What no linear layer has: a rule for experts alone (GPT-OSS).
    only_experts = {rule.scheme for rule in model.rules if ".experts." in rule.pattern}
    for scheme in schemes:
        if scheme not in only_experts:
            yield Part("linear layers", "linear", scheme)
        if mixture and (scheme in experts or scheme in only_experts):
            yield Part("experts", "experts", scheme)
    head = model.scheme_for("lm_head", "ParallelLMHead")
    if head is not None and not _get(config, "tie_word_embeddings"):
        yield Part("lm_head", "lm_head", head)


def _get(config: Any, name: str) -> Any:
    return config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)


def judge(model: ModelScheme, host: Host, parts: Iterable[Part]) -> Verdict:
    """Who serves ``model`` on ``host``.

    Args:
        parts: from ``stored_parts`` or ``described_parts``.
    """
    found = tuple(_judge_part(part, host, model) for part in parts)
    transforms = format_of(model).transforms_in_tree(model, host) if model.online else None
    whole = model.refused_in_tree or transforms
    in_tree = whole or next((p.in_tree for p in found if p.in_tree), None)
    helped = not whole and all(p.in_tree is None or p.with_kernel for p in found)
    method = plugin_method(model)
    plugin = _cache_scales(model) or next((p.plugin for p in found if p.plugin), None)
    if method is None and plugin is None:
        plugin = "it without a method of its own" if in_tree else None
    server: Server = "nobody"
    if in_tree is None:
        server = "vllm"
    elif helped:
        server = "vllm with kernels"
    elif plugin is None:
        server = "plugin"
    cache = model.kv_cache == "fp8" and host.lacks_avx512
    return Verdict(found, in_tree, plugin, method if plugin is None else None, server, "bfloat16" if cache else "")


def _judge_part(part: Part, host: Host, model: ModelScheme) -> PartVerdict:
    format, scheme = get_format(part.scheme), part.scheme
    reason = format.refused_in_tree(scheme, host, part.kind, part.out_features, part.in_features)
    # In transformers an LM head is a Linear, in vLLM it is not: a rule for that class passes it over.
    unseen = part.kind == "lm_head" and model.scheme_for(part.name, "ParallelLMHead") is None
    if unseen:
        reason = "an lm_head that no target names"
    plugin = None
    if not format.readable(scheme):
        plugin = f"{scheme.describe()} ({format.name})"
    elif part.kind == "embedding":
        plugin = "quantized embeddings"
    kernel = "" if reason else format.in_tree_kernel(scheme, host, part.kind)
    helps = not unseen and format.kernel_helps(scheme, host, part.kind)
    return PartVerdict(part, reason, kernel, helps, plugin)


def _cache_scales(model: ModelScheme) -> str | None:
    scheme = model.raw.get("kv_cache_scheme")
    per_head = isinstance(scheme, dict) and str(scheme.get("strategy")).lower() == "attn_head"
    return "KV-cache scales per attention head" if model.kv_cache and per_head else None


def parts_of(checkpoint: Checkpoint, model: ModelScheme) -> list[Part]:
    """The parts by a checkpoint's headers, or by its config alone where it has no tensors."""
    if checkpoint.tensors:
        return stored_parts(checkpoint.modules(), model)
    return described_parts(model, checkpoint.config)


def judge_checkpoint(checkpoint: Checkpoint, model: ModelScheme, host: Host) -> Verdict:
    """``judge`` of all parts of a checkpoint."""
    return judge(model, host, parts_of(checkpoint, model))


def why_in_tree_rejects(model: ModelScheme, host: Host, *, experts: bool = False) -> str | None:
    """The first reason for which vLLM without this plugin does not serve ``model`` on ``host``, None when it does.

    Args:
        experts: the model is a mixture of experts.
    """
    return judge(model, host, described_parts(model, {"num_experts": 2} if experts else {})).in_tree


def who_serves(verdict: Verdict) -> str:
    """Who serves it, for a line of a report."""
    return {
        "vllm": "vLLM",
        "vllm with kernels": "vLLM with this plugin's kernels",
        "plugin": f"this plugin ({verdict.method})",
        "nobody": "nobody",
    }[verdict.server]
