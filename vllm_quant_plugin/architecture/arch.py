"""A model as the planner sees it: parameters by layer, cache per layer, rules of sharding. No torch.

The same description is built from config.json alone (``families``) or from safetensors
headers (``headers``), with the names of the checkpoint, so that a quantization scheme's
rules apply to either.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

Role = Literal["column", "row", "kv", "replicated", "vocab", "expert_column", "expert_row", "expert"]
Ends = Literal["guarded", "everywhere", "norm_last", "embedding_everywhere"]
Fused = Literal["", "first", "next"]
CacheKind = Literal["full", "sliding", "chunked", "mla", "mamba", "cross"]

VOCAB_PADDING = 64  # vLLM: DEFAULT_VOCAB_PADDING_SIZE in vocab_parallel_embedding.py


@dataclass(frozen=True)
class Parameter:
    """One tensor, or ``count`` identical ones, in the checkpoint's naming.

    Attributes:
        name: module path with the parameter's last component, e.g. ``model.layers.0.self_attn.q_proj.weight``.
        shape: logical and unsharded: (out_features, in_features), or (n,) for a vector.
        role: how tensor parallelism cuts it.
            ``column`` cuts dimension 0, ``row`` the last one (a vector with it stays whole),
            ``kv`` dimension 0 by KV heads (replicated beyond their number), ``vocab`` dimension 0
            padded to 64, ``expert_*`` likewise within an expert or, under expert parallelism,
            by whole experts; ``expert`` only by whole experts.
        heads: KV heads, for the role ``kv``.
        count: number of identical tensors (experts).
        linear: a weight that a quantization scheme may apply to.
        itemsize: bytes per element where it is not the model's dtype (0: the model's dtype).
        nbytes: bytes in the checkpoint of the whole tensor, where it is stored packed and its
            logical shape is not known; 0 otherwise.
        fused: place in a module that vLLM fuses from several matrices (q, k and v; gate and up): ``first`` or ``next``
            (which shares with the first what a format stores once per module), "" for a module of its own.
        derived: made by vLLM after loading (e.g. MLA's absorbed projections), not a parameter.
    """

    name: str
    shape: tuple[int, ...]
    role: Role
    heads: int = 0
    count: int = 1
    linear: bool = False
    itemsize: int = 0
    nbytes: int = 0
    fused: Fused = ""
    derived: bool = False

    @property
    def module(self) -> str:
        return self.name.rpartition(".")[0]


@dataclass(frozen=True)
class State:
    """One tensor of a recurrent state, per request.

    Attributes:
        cut: elements that tensor parallelism divides.
        grouped: elements in ``groups`` groups, which are replicated where there are more ranks than groups.
        temporal: whether it is the recurrent state proper, whose dtype may differ from the model's.
    """

    cut: int
    grouped: int = 0
    groups: int = 1
    temporal: bool = False

    def elements(self, tp: int) -> int:
        return -(-self.cut // tp) + self.grouped // self.groups * max(1, self.groups // tp)


@dataclass(frozen=True)
class Cache:
    """What one layer keeps per request.

    Attributes:
        kind: ``full``, ``sliding`` or ``chunked`` attention, ``mla`` (one latent vector, not cut by
            tensor parallelism), ``mamba`` (a state of fixed size), ``cross`` (encoder tokens).
        kv_heads: KV heads of the whole model; replicated where there are more ranks.
        head_dim: width of a key head (mla: the latent with its rotary part).
        head_dim_v: width of a value head (mla: 0).
        window: tokens of the window or chunk.
        states: for ``mamba``: the tensors of the state.
        checkpoints: for ``mamba``: states that a request holds when prefix caching keeps them at block ends.
    """

    kind: CacheKind
    kv_heads: int = 0
    head_dim: int = 0
    head_dim_v: int = 0
    window: int = 0
    states: tuple[State, ...] = ()
    checkpoints: int = 2


@dataclass(frozen=True)
class Layer:
    """One decoder layer: what pipeline parallelism moves as a whole.

    Attributes:
        reads: index of the layer whose cache this one reads instead of one of its own; it must be on the same stage.
    """

    parameters: tuple[Parameter, ...]
    caches: tuple[Cache, ...] = ()
    reads: int | None = None


@dataclass(frozen=True)
class TpRule:
    """A size that tensor parallelism must divide; ``replicable`` sizes may also divide the TP size."""

    what: str
    size: int
    replicable: bool = False

    def allows(self, tp: int) -> bool:
        return self.size % tp == 0 or (self.replicable and tp % self.size == 0)

    def refusal(self, tp: int) -> str:
        if self.replicable:
            return f"{self.size} {self.what} cannot be spread over {tp} ranks, nor {tp} ranks over them"
        return f"{self.size} {self.what} do not divide by {tp}"


@dataclass(frozen=True)
class ModelArch:
    """The whole model.

    Attributes:
        first: parameters of the first pipeline stage (embeddings, vision tower).
        last: parameters of the last stage (final norm, lm_head).
        shared: of the first stage, those that tied embeddings repeat on the last stage of several.
        rotary_elements: elements of the shared cos/sin tables, kept in the model's dtype.
        state_dtype: dtype of temporal states where the config fixes it, "" for the cache's.
        ends: which pipeline stages hold embeddings, final norm and lm_head: ``guarded`` only those that
            need them, ``everywhere`` all of them, ``norm_last`` all of them but the norm,
            ``embedding_everywhere`` only the embeddings on all of them.
        pipeline: whether vLLM can run the model in pipeline stages.
        expert_limit: whether vLLM refuses more ranks than experts.
        unsized: parts (vision, audio) whose size only the checkpoint's tensors give.
        nested: it is the language model of a multimodal one: names in a quantization config have its prefix.
        transformers: vLLM runs the model through transformers' code.
        refusals: why vLLM refuses the model at any size.
        exact: False when the family is unknown and a Llama-like decoder was assumed.
        guessed: what of an unknown family's config no Llama-like decoder has, e.g. experts.
    """

    model_type: str
    architecture: str
    hidden: int
    vocab: int
    max_position: int
    dtype: str
    layers: tuple[Layer, ...]
    first: tuple[Parameter, ...]
    last: tuple[Parameter, ...]
    shared: tuple[Parameter, ...] = ()
    rules: tuple[TpRule, ...] = ()
    intermediate: int = 0
    heads: int = 0
    head_dim: int = 0
    experts: int = 0
    experts_per_token: int = 0
    rotary_elements: int = 0
    state_dtype: str = ""
    ends: Ends = "guarded"
    pipeline: bool = True
    expert_limit: bool = False
    nested: bool = False
    transformers: bool = False
    refusals: tuple[str, ...] = ()
    exact: bool = True
    guessed: str = ""
    unsized: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def parameters(self) -> Iterator[Parameter]:
        """Every parameter once."""
        yield from self.first
        for layer in self.layers:
            yield from layer.parameters
        yield from self.last

    @property
    def caches(self) -> tuple[Cache, ...]:
        return tuple(cache for layer in self.layers for cache in layer.caches)
