"""A canonical weight whose codes stay in the checkpoint's words until somebody asks for them.

Slicing and stacking touch no code, and packing for the CPU goes from the words to the packed planes
without the byte per weight in between.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch

from vllm_quant_kernels.canonical import CanonicalWeight, concat_rows, concat_tables
from vllm_quant_kernels.cpu import huge_pages
from vllm_quant_kernels.cpu.layout import LANES
from vllm_quant_kernels.sizes import round_up
from vllm_quant_kernels.unpack import WordCodes


class StoredWeight(CanonicalWeight):
    """See :class:`CanonicalWeight`; ``codes`` is unpacked at the first use, and kept.

    Args:
        parts: stacked along the output, all of the same bits and input features.
        scales, group_size, zeros, g_idx: as in the canonical weight.
    """

    parts: tuple[WordCodes, ...]

    def __init__(
        self,
        parts: tuple[WordCodes, ...],
        scales: torch.Tensor,
        group_size: int,
        zeros: torch.Tensor | None = None,
        g_idx: torch.Tensor | None = None,
    ) -> None:
        values = {
            "parts": parts, "scales": scales, "bits": parts[0].bits, "group_size": group_size, "zeros": zeros,
            "kind": "int", "g_idx": g_idx,
        }  # fmt: skip
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @cached_property
    def codes(self) -> torch.Tensor:
        if len(self.parts) == 1:
            return self.parts[0].tensor()
        return torch.cat([part.tensor() for part in self.parts])

    @property
    def out_features(self) -> int:
        return sum(part.n for part in self.parts)

    @property
    def in_features(self) -> int:
        return self.parts[0].k

    def plain(self) -> CanonicalWeight:
        return CanonicalWeight(
            self.codes, self.scales, self.bits, self.group_size, self.zeros, self.kind, self.g_idx
        )  # fmt: skip

    @property
    def packs_natively(self) -> bool:
        """Whether ``pack_planes`` works: every part but the last fills whole panels."""
        return all(p.native for p in self.parts) and all(p.n % LANES == 0 for p in self.parts[:-1])

    def pack_planes(self, order: torch.Tensor | None, columns: int) -> torch.Tensor:
        """The packed planes, 1-D; see :meth:`WordCodes.pack_into`."""
        sizes = [round_up(part.n, LANES) * columns * self.bits // 8 for part in self.parts]
        out = huge_pages.empty_bytes(sum(sizes))
        for part, piece in zip(self.parts, out.split(sizes), strict=True):
            part.pack_into(piece, order, columns)
        return out

    def _validate_codes(self) -> None:
        if len({(part.bits, part.k) for part in self.parts}) != 1:
            raise ValueError("stacked parts differ in bits or in_features")

    def rows(self, start: int, stop: int) -> StoredWeight:
        found, first = [], 0
        for part in self.parts:
            begin, end = max(start - first, 0), min(stop - first, part.n)
            if begin < end:
                found.append(part.rows(begin, end))
            first += part.n
        return self._with(tuple(found) or (self.parts[0].rows(0, 0),), self._rows(start, stop))

    def columns(self, start: int, stop: int) -> StoredWeight:
        return self._with(tuple(p.columns(start, stop) for p in self.parts), self._columns(start, stop))

    def _with(self, parts: tuple[WordCodes, ...], changed: dict[str, Any]) -> StoredWeight:
        kept = {name: changed.get(name, getattr(self, name)) for name in ("scales", "group_size", "zeros", "g_idx")}
        return StoredWeight(parts, **kept)


def stack_rows(weights: list[CanonicalWeight]) -> CanonicalWeight:
    """:func:`concat_rows`, unpacking nothing where every weight is stored."""
    if len(weights) == 1 or not all(isinstance(w, StoredWeight) for w in weights):
        return concat_rows(weights)
    scales, zeros = concat_tables(weights)
    parts = tuple(part for w in weights if isinstance(w, StoredWeight) for part in w.parts)
    return StoredWeight(parts, scales, weights[0].group_size, zeros, weights[0].g_idx)


def stack_runs(weights: list[CanonicalWeight]) -> list[CanonicalWeight]:
    """Stack along the output into as few weights as possible: neighbours that :func:`stack_rows` takes."""
    runs: list[list[CanonicalWeight]] = []
    for weight in weights:
        if runs and _stackable(runs[-1][0], weight):
            runs[-1].append(weight)
        else:
            runs.append([weight])
    return [stack_rows(run) for run in runs]


def _stackable(a: CanonicalWeight, b: CanonicalWeight) -> bool:
    if (a.bits, a.group_size, a.kind) != (b.bits, b.group_size, b.kind):
        return False
    if a.table is not None and b.table is not None and a.dim > 1 and not torch.equal(a.table, b.table):
        return False
    if a.g_idx is None or b.g_idx is None:
        return a.g_idx is b.g_idx
    return torch.equal(a.g_idx, b.g_idx)
