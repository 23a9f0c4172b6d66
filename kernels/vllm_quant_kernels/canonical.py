"""The canonical form of a quantized weight, where formats and kernels meet.

    codes  (N, K) uint8          scales (N, G)            zeros (N, G) or None
    +-----------------+          +-------+                +-------+
    | code of w[n, k] |          | s[n,g]|                | z[n,g]|
    +-----------------+          +-------+                +-------+

    w[n, k] = (value(codes[n, k]) - zero) * scales[n, g]      g = g_idx[k], or k // group_size
    kind "int":  value(c) = c, 0 <= c < 2**bits; zero = zeros[n, g], or 2**(bits-1) when zeros is None
    kind "fp8_*": value(c) = the float8 whose bits are c; zero = 0

N is out_features, K is in_features (torch.nn.Linear's weight orientation).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

Kind = Literal["int", "fp8_e4m3", "fp8_e5m2"]
E4M3_MAX = 448.0
FP8_DTYPES = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}


@dataclass(frozen=True)
class CanonicalWeight:
    """A quantized (N, K) weight in unpacked form.

    Attributes:
        codes: uint8 (N, K).
        scales: floating (N, G); G = ceil(K / group_size), or any G when ``g_idx`` is given.
        zeros: None, or (N, G), uint8 (integer zero points) or floating. May lie outside the code range.
        bits: 2 to 8; 8 for float kinds.
        group_size: input features per group; K for one scale per channel.
        kind: how a code is read.
        g_idx: None, or int32 (K,): the group of each input feature (act-order).
    """

    codes: torch.Tensor
    scales: torch.Tensor
    bits: int
    group_size: int
    zeros: torch.Tensor | None = None
    kind: Kind = "int"
    g_idx: torch.Tensor | None = None

    @property
    def out_features(self) -> int:
        return self.codes.shape[0]

    @property
    def in_features(self) -> int:
        return self.codes.shape[1]

    def validate(self) -> CanonicalWeight:
        """Check shapes, dtypes and ranges; returns self. Raises ValueError naming the field."""
        self._validate_codes()
        n, k = self.out_features, self.in_features
        if not 2 <= self.bits <= 8 or (self.kind != "int" and self.bits != 8):
            raise ValueError(f"bits must be 2..8 (8 for {self.kind}), got {self.bits}")
        if self.scales.ndim != 2 or self.scales.shape[0] != n or not self.scales.is_floating_point():
            raise ValueError(f"scales must be floating ({n}, G), got {self.scales.dtype} {tuple(self.scales.shape)}")
        groups = self.scales.shape[1]
        if self.zeros is not None and self.zeros.shape != self.scales.shape:
            raise ValueError(f"zeros {tuple(self.zeros.shape)} must match scales {tuple(self.scales.shape)}")
        if self.kind != "int" and self.zeros is not None:
            raise ValueError("float weights have no zero points")
        if self.g_idx is None:
            if self.group_size <= 0 or -(-k // self.group_size) != groups:
                raise ValueError(f"group_size {self.group_size} over K = {k} does not give {groups} groups")
        else:
            if self.g_idx.shape != (k,):
                raise ValueError(f"g_idx must be ({k},), got {tuple(self.g_idx.shape)}")
            if k and (int(self.g_idx.min()) < 0 or int(self.g_idx.max()) >= groups):
                raise ValueError(f"g_idx must lie in [0, {groups})")
        return self

    def _validate_codes(self) -> None:
        if self.codes.dtype != torch.uint8 or self.codes.ndim != 2:
            raise ValueError(f"codes must be uint8 (N, K), got {self.codes.dtype} {tuple(self.codes.shape)}")
        if self.kind == "int" and self.bits < 8 and self.codes.numel() and int(self.codes.max()) >= 1 << self.bits:
            raise ValueError(f"codes exceed {self.bits} bits")

    def plain(self) -> CanonicalWeight:
        """This weight with its codes in a tensor, where a subclass keeps them otherwise."""
        return self

    def group_index(self) -> torch.Tensor:
        """int64 (K,): the group of each input feature."""
        if self.g_idx is not None:
            return self.g_idx.long()
        return torch.arange(self.in_features, device=self.codes.device) // self.group_size

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The (N, K) weight. Computed in float64 when ``dtype`` is float64, else in float32."""
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        index = self.group_index()
        if self.kind == "int":
            values = self.codes.to(wide)
            values -= 1 << (self.bits - 1) if self.zeros is None else self.zeros.to(wide)[:, index]
        else:
            values = self.codes.view(FP8_DTYPES[self.kind]).to(wide)
        return (values * self.scales.to(wide)[:, index]).to(dtype)

    def rows(self, start: int, stop: int) -> CanonicalWeight:
        """Output features [start, stop): a column-parallel shard."""
        return CanonicalWeight(
            self.codes[start:stop],
            self.scales[start:stop],
            self.bits,
            self.group_size,
            None if self.zeros is None else self.zeros[start:stop],
            self.kind,
            self.g_idx,
        )

    def columns(self, start: int, stop: int) -> CanonicalWeight:
        """Input features [start, stop): a row-parallel shard.

        Without ``g_idx`` the bounds must fall on group borders. With it all scales are kept, as
        the columns of a shard may belong to any group.

        Raises:
            ValueError: a bound cuts a group.
        """
        scales, zeros, group, g_idx = self._tables_of_columns(start, stop)
        return CanonicalWeight(self.codes[:, start:stop], scales, self.bits, group, zeros, self.kind, g_idx)

    def _tables_of_columns(
        self, start: int, stop: int
    ) -> tuple[torch.Tensor, torch.Tensor | None, int, torch.Tensor | None]:
        """scales, zeros, group_size and g_idx of ``columns``."""
        group = self.group_size
        if self.g_idx is not None:
            return self.scales, self.zeros, group, self.g_idx[start:stop]
        if self.scales.shape[1] == 1:
            return self.scales, self.zeros, stop - start, None
        if start % group or (stop % group and stop != self.in_features):
            raise ValueError(f"columns [{start}, {stop}) cut a group of {group}")
        part = slice(start // group, -(-stop // group))
        return self.scales[:, part], None if self.zeros is None else self.zeros[:, part], group, None


def concat_rows(parts: list[CanonicalWeight]) -> CanonicalWeight:
    """Stack weights along the output (q, k, v -> qkv). All must agree in bits, group and kind.

    Zero points are made explicit when only some parts have them. Differing ``g_idx`` cannot be
    stacked: one gather serves the whole matrix.

    Raises:
        ValueError: the parts do not agree.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    scales, zeros = concat_tables(parts)
    codes = torch.cat([p.codes for p in parts])
    return CanonicalWeight(codes, scales, first.bits, first.group_size, zeros, first.kind, first.g_idx)


def concat_tables(parts: list[CanonicalWeight]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Scales and zero points of ``concat_rows``. Raises ValueError as that does."""
    first = parts[0]
    for part in parts[1:]:
        if (part.bits, part.group_size, part.kind, part.in_features) != (
            first.bits,
            first.group_size,
            first.kind,
            first.in_features,
        ):
            raise ValueError("stacked weights differ in bits, group_size, kind or in_features")
        same = (part.g_idx is None) == (first.g_idx is None)
        if not same or (part.g_idx is not None and not torch.equal(part.g_idx, first.g_idx)):  # type: ignore[arg-type]
            raise ValueError("stacked weights differ in g_idx")
    scales = torch.cat([p.scales for p in parts])
    if all(p.zeros is None for p in parts):
        return scales, None
    middle = 1 << (first.bits - 1)
    whole = all(p.zeros is None or p.zeros.dtype == torch.uint8 for p in parts)
    dtype = torch.uint8 if whole else torch.float32
    tables = [torch.full_like(p.scales, middle, dtype=dtype) if p.zeros is None else p.zeros.to(dtype) for p in parts]
    return scales, torch.cat(tables)
