"""``vqp::dequantized_linear``: a linear layer whose packed codes are dequantized a tile at a time.

    codes (N, words)  --rows of one tile-->  float32 (T, K)  --> 16 bits -->  y[:, tile] = x W_tile^T

Only one tile is unpacked at any time, so that a layer takes its packed bytes and all layers together one buffer. It is
an operator, not a Python loop in the layer, since a compiler could otherwise keep all tiles at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vllm_quant_kernels.canonical import CanonicalWeight, Kind
from vllm_quant_kernels.unpack import unpack_dense

# Weights of one tile; each takes about 16 bytes until it has been multiplied: 32 MiB.
TILE = 1 << 21
ROWS = 16


@dataclass(frozen=True)
class PackedCodes:
    """A canonical weight whose codes of less than 8 bits are words, each output feature a dense stream.

    Attributes:
        codes: int32 (N, ceil(K bits / 32)); the codes themselves with 8 bits or ``dim`` > 1.
        n, k: out_features and in_features; all others as in the canonical weight.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    g_idx: torch.Tensor | None
    table: torch.Tensor | None
    super_scales: torch.Tensor | None
    bits: int
    group_size: int
    kind: Kind
    per_super: int
    dim: int
    n: int
    k: int

    def rows(self, start: int, stop: int) -> CanonicalWeight:
        """Output features [start, stop)."""
        codes, plain = self.codes[start:stop], self.dim > 1 or self.bits == 8
        zeros = None if self.zeros is None else self.zeros[start:stop]
        table, supers = self.table, self.super_scales
        if table is not None and table.ndim == 2 and self.dim == 1:
            table = table[start:stop]
        if supers is not None and self.per_super:
            supers = supers[start:stop]
        return CanonicalWeight(
            codes if plain else unpack_dense(codes, self.bits, self.k), self.scales[start:stop], self.bits,
            self.group_size, zeros, self.kind, self.g_idx, table, supers, self.per_super, self.dim,
        )  # fmt: skip


def tile_rows(k: int) -> int:
    """Output features of one tile."""
    return max(ROWS, TILE // max(k, 1) // ROWS * ROWS)


_LIB = torch.library.Library("vqp", "FRAGMENT")
_LIB.define(
    "dequantized_linear(Tensor x, Tensor codes, Tensor scales, Tensor? zeros, Tensor? g_idx, Tensor? table, "
    "Tensor? super_scales, Tensor? bias, int bits, int group_size, str kind, int per_super, int dim, int n, int k) "
    "-> Tensor"
)


def _linear(x, codes, scales, zeros, g_idx, table, super_scales, bias, *args):  # type: ignore[no-untyped-def]
    weight = PackedCodes(codes, scales, zeros, g_idx, table, super_scales, *args)
    if x.ndim == 0 or x.shape[-1] != weight.k:
        raise ValueError(f"x must be (..., {weight.k}), got {tuple(x.shape)}")
    rows = x.reshape(-1, weight.k)
    out, step = x.new_empty(rows.shape[0], weight.n), tile_rows(weight.k)
    for start in range(0, weight.n, step):
        stop = min(start + step, weight.n)
        part = None if bias is None else bias[start:stop].to(x.dtype)
        out[:, start:stop] = torch.nn.functional.linear(rows, weight.rows(start, stop).dequantize().to(x.dtype), part)
    return out.view(*x.shape[:-1], weight.n)


def _fake(x, codes, scales, zeros, g_idx, table, super_scales, bias, *args):  # type: ignore[no-untyped-def]
    return x.new_empty(*x.shape[:-1], args[-2])


_LIB.impl("dequantized_linear", _linear, "CompositeExplicitAutograd")
torch.library.register_fake("vqp::dequantized_linear", _fake, lib=_LIB)
