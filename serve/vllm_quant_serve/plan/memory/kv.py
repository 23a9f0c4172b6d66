"""KV-cache bytes, blocks and tokens, computed the way vLLM does it. No torch.

Mirrors vllm/v1/kv_cache_interface.py (page sizes, blocks per request) and
vllm/v1/core/kv_cache_utils.py (grouping of layers, bytes per block, capacity) of 0.32 and 0.33:
layers of one kind form groups of equal size that share one pool of blocks; a block holds one
page of each layer of the widest group.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vllm_quant_plugin.architecture.arch import Cache, Layer
from vllm_quant_plugin.architecture.placement import stage_layers
from vllm_quant_plugin.errors import UsageError

KV_ITEMSIZE = {"fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1, "fp8_inc": 1, "bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True)
class KvSettings:
    """What besides the model decides the KV cache.

    Attributes:
        dtype: ``auto`` or a ``--kv-cache-dtype``.
        itemsize: bytes per element of the model's dtype, for ``auto``.
        block_size: tokens of a block.
        in_flight: tokens that may be scheduled but not yet settled (max_num_batched_tokens
            times the batches in flight); sliding windows reserve them.
        encoder_tokens: encoder tokens that vLLM reserves per request of an encoder-decoder model (0: ``in_flight``).
        state_itemsize: bytes per element of temporal Mamba states; the others have the model's dtype.
        hybrid: whether layers of different kinds keep their own groups.
        prefix_caching: vLLM's default; hybrids then keep several Mamba states per request
            (``mamba_cache_mode`` "align"), models without attention never do.
    """

    dtype: str = "auto"
    itemsize: int = 2
    block_size: int = 16
    in_flight: int = 2048
    encoder_tokens: int = 0
    state_itemsize: int = 2
    hybrid: bool = True
    prefix_caching: bool = True

    @property
    def kv_itemsize(self) -> int:
        if self.dtype == "auto":
            return self.itemsize
        if self.dtype not in KV_ITEMSIZE:
            raise UsageError(
                f"--kv-cache-dtype {self.dtype} is not one the planner knows",
                f"it knows auto, {', '.join(KV_ITEMSIZE)}",
            )
        return KV_ITEMSIZE[self.dtype]


@dataclass(frozen=True)
class Spec:
    """One layer's cache on one rank: bytes of a page and how many pages a request takes."""

    kind: str
    page: int
    block_size: int
    window: int = 0
    states: int = 1

    def pages(self, length: int, settings: KvSettings) -> int:
        """Blocks that a request of ``length`` tokens claims."""
        if self.kind == "sliding":
            return math.ceil(min(self.window - 1 + settings.in_flight, length) / self.block_size) + 1
        if self.kind == "chunked":
            return math.ceil(min(self.window + settings.in_flight, length) / self.block_size)
        if self.kind == "mamba":
            return self.states
        if self.kind == "cross":
            return math.ceil((settings.encoder_tokens or settings.in_flight) / self.block_size)
        return math.ceil(length / self.block_size)


@dataclass(frozen=True)
class Group:
    """Caches that share one block table; ``layers`` are the indices of the layers they belong to."""

    spec: Spec
    layers: tuple[int, ...]


@dataclass(frozen=True)
class KvLayout:
    """The KV cache of a rank.

    Attributes:
        groups: of the whole model, as vLLM forms them.
        block_bytes: bytes that one block takes in the pool of this rank.
    """

    groups: tuple[Group, ...]
    block_bytes: int
    settings: KvSettings

    def blocks(self, nbytes: int) -> int:
        return nbytes // self.block_bytes if self.block_bytes else 1

    def blocks_per_request(self, length: int) -> int:
        return sum(group.spec.pages(length, self.settings) for group in self.groups)

    def needed_bytes(self, length: int, requests: int) -> int:
        """Bytes for ``requests`` requests of ``length`` tokens, with the null block that vLLM reserves."""
        return self.block_bytes * (self.blocks_per_request(length) * requests + 1)

    def concurrency(self, blocks: int, length: int) -> float:
        """vLLM's "Maximum concurrency for N tokens per request"."""
        per_request = self.blocks_per_request(length)
        return blocks / per_request if per_request else math.inf

    def tokens(self, blocks: int, length: int) -> int:
        """vLLM's "KV cache size: N tokens": concurrency times the longest request."""
        found = self.concurrency(blocks, length)
        return int(found * length) if math.isfinite(found) else 0

    @property
    def token_bytes(self) -> int:
        """Bytes by which one more token grows a long request: the layers that keep every token."""
        if not self.groups:
            return 0
        growing = [g for g in self.groups if g.spec.kind in ("full", "mla")]
        return sum(self.block_bytes // group.spec.block_size for group in growing)

    def longest(self, nbytes: int, limit: int) -> int:
        """The longest request, up to ``limit`` tokens, that fits ``nbytes``; 0 when none does."""
        if self.needed_bytes(1, 1) > nbytes:
            return 0
        low, high = 1, limit
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.needed_bytes(middle, 1) <= nbytes else (low, middle - 1)
        return low


def page_of(cache: Cache, tp: int, settings: KvSettings, block_size: int) -> int:
    """Bytes of one page of a layer on one of ``tp`` ranks."""
    if cache.kind == "mamba":
        sizes = {True: settings.state_itemsize, False: settings.itemsize}
        return sum(state.elements(tp) * sizes[state.temporal] for state in cache.states)
    heads = 1 if cache.kind == "mla" else max(1, cache.kv_heads // tp)
    return heads * (cache.head_dim + cache.head_dim_v) * settings.kv_itemsize * block_size


def _specs(caches: Sequence[Cache], tp: int, settings: KvSettings) -> tuple[list[Spec], int]:
    """A spec per cache, and the block size: hybrids with Mamba enlarge it until a page holds a state.

    Source: vllm/model_executor/models/config.py and vllm/platforms (attention block size aligned to the Mamba page).
    """
    size = settings.block_size
    pages = [page_of(c, tp, settings, size) for c in caches if c.kind == "mamba"]
    others = [c for c in caches if c.kind != "mamba"]
    if pages and others:
        per_token = max(page_of(c, tp, settings, 1) for c in others)
        size = max(size, settings.block_size * math.ceil(max(pages) / (settings.block_size * per_token)))
        padded = per_token * size
    specs = []
    for cache in caches:
        page = page_of(cache, tp, settings, size)
        if cache.kind == "mamba":
            states = cache.checkpoints if others and settings.prefix_caching else 1
            specs.append(Spec("mamba", max(page, padded) if others else page, size, states=states))
        else:
            specs.append(Spec(cache.kind, page, size, cache.window))
    return specs, size


def _unified(specs: list[Spec]) -> list[Spec]:
    """Pages of equal size: smaller ones get longer blocks, or padding where that does not divide."""
    widest = max(spec.page for spec in specs)
    found = []
    for spec in specs:
        if spec.page == widest:
            found.append(spec)
        elif spec.kind != "mamba" and widest % spec.page == 0:
            found.append(replace(spec, page=widest, block_size=spec.block_size * (widest // spec.page)))
        else:
            found.append(replace(spec, page=widest))
    return found


def _uniform(specs: list[Spec]) -> bool:
    """Whether all layers need the same number of slots and so form one group."""
    kinds = {"full" if s.kind == "mla" else s.kind for s in specs}
    if len(kinds) > 1:
        return False
    return len({(s.window if s.kind in ("sliding", "chunked") else 0) for s in specs}) == 1


def kv_layouts(layers: Sequence[Layer], tp: int, stages: Sequence[int], settings: KvSettings) -> list[KvLayout]:
    """One layout per pipeline stage of so many layers each: the groups are the whole model's, the bytes the stage's."""
    caches = [cache for layer in layers for cache in layer.caches]
    owners = [i for i, layer in enumerate(layers) for _ in layer.caches]
    if not caches:
        return [KvLayout((), 0, settings) for _ in stages]
    specs, _ = _specs(caches, tp, settings)
    if not settings.hybrid:
        specs = [replace(s, kind="full") if s.kind in ("sliding", "chunked") else s for s in specs]
    ranges = _ranges(stages)
    if _uniform(specs):
        pages = dict.fromkeys(owners, 0)
        for owner, spec in zip(owners, specs, strict=True):
            pages[owner] += spec.page
        group = (Group(specs[0], tuple(owners)),)
        return [KvLayout(group, sum(pages.get(i, 0) for i in stage), settings) for stage in ranges]
    specs = _unified(specs)
    groups = tuple(_split(specs, owners))
    widest = [max(sum(owner in stage for owner in group.layers) for group in groups) for stage in ranges]
    return [KvLayout(groups, count * specs[0].page, settings) for count in widest]


def kv_layout(layers: Sequence[Layer], tp: int, pp: int, settings: KvSettings) -> KvLayout:
    """Groups of the whole model and bytes per block of the stage where a block is largest."""
    return max(kv_layouts(layers, tp, stage_layers(len(layers), pp), settings), key=lambda layout: layout.block_bytes)


def _split(specs: list[Spec], owners: list[int]) -> list[Group]:
    """Groups of equal size: as many layers as the rarest kind has, or the commonest where they are close."""
    kinds: dict[Spec, list[int]] = {}
    for spec, owner in zip(specs, owners, strict=True):
        kinds.setdefault(spec, []).append(owner)
    least, most = min(map(len, kinds.values())), max(map(len, kinds.values()))
    size = most if most < least * 1.5 else least
    groups = []
    for spec, members in kinds.items():
        number = -(-len(members) // size)
        groups += [Group(spec, tuple(members[i::number])) for i in range(number)]
    return groups


def _ranges(stages: Sequence[int]) -> list[range]:
    """The layers of each pipeline stage."""
    found, start = [], 0
    for count in stages:
        found.append(range(start, start + count))
        start += count
    return found
