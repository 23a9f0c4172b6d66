"""The canonical form of a quantized weight, where formats and kernels meet.

    codes  (N, K)                scales (N, G)            zeros (N, G) or None
    +-----------------+          +-------+                +-------+
    | code of w[n, k] |          | s[n,g]|                | z[n,g]|
    +-----------------+          +-------+                +-------+

    w[n, k] = (value(codes[n, k]) - zero) * scale         g = g_idx[k], or k // group_size

    kind "int"       value(c) = c, 0 <= c < 2**bits; zero = zeros[n, g], or 2**(bits-1) when zeros is None
    kind "fp*"       value(c) = the small float whose bits are c; zero = 0
    kind "codebook"  value(c) = table[c], or table[n, c] where every channel has its own; zero = 0
                     With dim > 1, codes are (N, K / dim) and table[c] holds the values of dim neighbouring weights.

    scale = scales[n, g], times super_scales[n, g // per_super] where there is a second level
                          (super_scales[0, 0] for all of them when per_super is 0)

N is out_features, K is in_features (torch.nn.Linear's weight orientation). ``CanonicalWeight.dequantize`` is the
definition that formats and kernels are tested against.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from vllm_quant_kernels.scheme import E2M1, E4M3, E5M2, Codebook, Float, Int, ValueType, VectorCodebook

Kind = Literal["int", "fp8_e4m3", "fp8_e5m2", "fp6_e3m2", "fp6_e2m3", "fp4_e2m1", "codebook"]
E4M3_MAX = 448.0
FP8_DTYPES: dict[str, torch.dtype] = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}
FLOATS: dict[Kind, Float] = {
    "fp8_e4m3": E4M3, "fp8_e5m2": E5M2, "fp6_e3m2": Float(3, 2), "fp6_e2m3": Float(2, 3), "fp4_e2m1": E2M1,
}  # fmt: skip


def kind_of(value: ValueType) -> Kind:
    """The ``kind`` of a value type. Raises ValueError for a float that has none."""
    if isinstance(value, Int):
        return "int"
    if isinstance(value, Codebook | VectorCodebook):
        return "codebook"
    for kind, float_type in FLOATS.items():
        if float_type == value:
            return kind
    raise ValueError(f"{value.name} codes have no canonical form")


@functools.cache
def float_values(value: Float) -> tuple[float, ...]:
    """The value of every code of a float of up to 6 bits: sign, exponent, mantissa; no infinity and no NaN."""
    bias, steps, found = (1 << (value.exponent - 1)) - 1, 1 << value.mantissa, []
    for code in range(1 << (value.bits - 1)):
        exponent, mantissa = divmod(code, steps)
        found.append((mantissa + (steps if exponent else 0)) / steps * 2.0 ** (max(exponent, 1) - bias))
    return (*found, *(-v for v in found))


@dataclass(frozen=True)
class CanonicalWeight:
    """A quantized (N, K) weight in unpacked form.

    Attributes:
        codes: uint8 (N, K); with ``dim`` > 1 any integer dtype, (N, K / dim).
        scales: floating (N, G); G = ceil(K / group_size), or any G when ``g_idx`` is given. With ``super_scales`` of
            any dtype.
        bits: of one code: 2 to 8; up to 16 with ``dim`` > 1; those of the float for float kinds.
        group_size: input features per group; K for one scale per channel.
        zeros: None, or (N, G), uint8 (integer zero points) or floating. May lie outside the code range.
        kind: how a code is read.
        g_idx: None, or int32 (K,): the group of each input feature (act-order).
        table: of codebooks: floating (2**bits,), (N, 2**bits), or (entries, dim) with ``dim`` > 1.
        super_scales: None, or floating: (N, ceil(G / per_super)), or (1, 1) when ``per_super`` is 0.
        per_super: first-level scales per super-scale; 0 for one super-scale per tensor.
        dim: weights per code.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    bits: int
    group_size: int
    zeros: torch.Tensor | None = None
    kind: Kind = "int"
    g_idx: torch.Tensor | None = None
    table: torch.Tensor | None = None
    super_scales: torch.Tensor | None = None
    per_super: int = 0
    dim: int = 1

    @property
    def out_features(self) -> int:
        return self.codes.shape[0]

    @property
    def in_features(self) -> int:
        return self.codes.shape[1] * self.dim

    @property
    def is_plain(self) -> bool:
        """Whether this is an integer or FP8 weight with one level of scales: what the native kernels read."""
        return (self.kind == "int" or self.kind in FP8_DTYPES) and self.super_scales is None

    def validate(self) -> CanonicalWeight:
        """Check shapes, dtypes and ranges; returns self. Raises ValueError naming the field."""
        self._validate_codes()
        self._validate_table()
        n, k = self.out_features, self.in_features
        if self.scales.ndim != 2 or self.scales.shape[0] != n:
            raise ValueError(f"scales must be ({n}, G), got {tuple(self.scales.shape)}")
        if self.super_scales is None and not self.scales.is_floating_point():
            raise ValueError(f"scales must be floating ({n}, G), got {self.scales.dtype} {tuple(self.scales.shape)}")
        groups = self.scales.shape[1]
        if self.super_scales is not None:
            expected = (n, -(-groups // self.per_super)) if self.per_super > 0 else (1, 1)
            if self.super_scales.shape != expected or not self.super_scales.is_floating_point():
                found = f"{self.super_scales.dtype} {tuple(self.super_scales.shape)}"
                raise ValueError(f"super_scales must be floating {expected}, got {found}")
        if self.zeros is not None and self.zeros.shape != self.scales.shape:
            raise ValueError(f"zeros {tuple(self.zeros.shape)} must match scales {tuple(self.scales.shape)}")
        if self.kind != "int" and self.zeros is not None:
            raise ValueError("only integer weights have zero points")
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
        if self.codes.ndim != 2 or (self.codes.dtype != torch.uint8 and self.dim == 1):
            raise ValueError(f"codes must be uint8 (N, K), got {self.codes.dtype} {tuple(self.codes.shape)}")
        if self.kind in FLOATS:
            if self.bits != FLOATS[self.kind].bits:
                raise ValueError(f"bits must be {FLOATS[self.kind].bits} for {self.kind}, got {self.bits}")
        elif not (2 if self.kind == "int" else 1) <= self.bits <= (16 if self.dim > 1 else 8):
            raise ValueError(f"bits must be 2..8, got {self.bits}")
        if self.codes.numel() and self.bits != 8 and int(self.codes.max()) >= 1 << self.bits:
            raise ValueError(f"codes exceed {self.bits} bits")

    def _validate_table(self) -> None:
        if (self.table is None) == (self.kind == "codebook") or (self.dim != 1 and self.kind != "codebook"):
            raise ValueError(f"a table belongs to codebooks, and dim > 1 as well; the kind is {self.kind}")
        if self.table is None:
            return
        entries = 1 << self.bits
        shapes = [(entries,), (self.out_features, entries)] if self.dim == 1 else [(entries, self.dim)]
        if self.table.shape not in shapes or not self.table.is_floating_point():
            listed = " or ".join(map(str, shapes))
            raise ValueError(f"table must be floating {listed}, got {self.table.dtype} {tuple(self.table.shape)}")

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
        values = self._values(wide)
        if self.kind == "int":
            values -= 1 << (self.bits - 1) if self.zeros is None else self.zeros.to(wide)[:, index]
        return (values * self._scales(wide)[:, index]).to(dtype)

    def _values(self, wide: torch.dtype) -> torch.Tensor:
        """(N, K): what the codes stand for, before zero points and scales."""
        if self.kind == "int":
            return self.codes.to(wide)
        if self.kind in FP8_DTYPES:
            return self.codes.view(FP8_DTYPES[self.kind]).to(wide)
        if self.table is None:
            values = torch.tensor(float_values(FLOATS[self.kind]), dtype=wide, device=self.codes.device)
            return values[self.codes.long()]
        table, codes = self.table.to(wide), self.codes.long()
        if self.dim > 1:
            return table[codes].flatten(1)
        return table[codes] if table.ndim == 1 else table.gather(1, codes)

    def _scales(self, wide: torch.dtype) -> torch.Tensor:
        """(N, G): both levels of scales as one."""
        scales = self.scales.to(wide)
        return scales if self.super_scales is None else scales * self._super_scales_of_groups().to(wide)

    def _super_scales_of_groups(self) -> torch.Tensor:
        """(N, G) or (1, 1): the super-scale of each first-level scale."""
        assert self.super_scales is not None
        if not self.per_super:
            return self.super_scales
        return self.super_scales.repeat_interleave(self.per_super, dim=1)[:, : self.scales.shape[1]]

    def rows(self, start: int, stop: int) -> CanonicalWeight:
        """Output features [start, stop): a column-parallel shard."""
        return replace(self, codes=self.codes[start:stop], **self._rows(start, stop))

    def _rows(self, start: int, stop: int) -> dict[str, Any]:
        """The fields but ``codes`` that ``rows`` changes."""
        per_channel = self.table is not None and self.table.ndim == 2 and self.dim == 1
        return {
            "scales": self.scales[start:stop],
            "zeros": None if self.zeros is None else self.zeros[start:stop],
            "table": self.table[start:stop] if per_channel and self.table is not None else self.table,
            "super_scales": self.super_scales[start:stop]
            if self.super_scales is not None and self.per_super
            else self.super_scales,
        }

    def columns(self, start: int, stop: int) -> CanonicalWeight:
        """Input features [start, stop): a row-parallel shard.

        Without ``g_idx`` the bounds must fall on group borders. With it all scales are kept, as
        the columns of a shard may belong to any group.

        Raises:
            ValueError: a bound cuts a group, or the weights of one code.
        """
        if start % self.dim or stop % self.dim:
            raise ValueError(f"columns [{start}, {stop}) cut a code of {self.dim} weights")
        codes = self.codes[:, start // self.dim : stop // self.dim]
        return replace(self, codes=codes, **self._columns(start, stop))

    def _columns(self, start: int, stop: int) -> dict[str, Any]:
        """The fields but ``codes`` that ``columns`` changes."""
        group = self.group_size
        if self.g_idx is not None:
            return {"g_idx": self.g_idx[start:stop]}
        if self.scales.shape[1] == 1:
            return {"group_size": stop - start}
        if start % group or (stop % group and stop != self.in_features):
            raise ValueError(f"columns [{start}, {stop}) cut a group of {group}")
        first, last = start // group, -(-stop // group)
        changed: dict[str, Any] = {
            "scales": self.scales[:, first:last],
            "zeros": None if self.zeros is None else self.zeros[:, first:last],
        }
        if self.super_scales is None or not self.per_super:
            return changed
        if first % self.per_super == 0:
            part = slice(first // self.per_super, -(-last // self.per_super))
            return {**changed, "super_scales": self.super_scales[:, part]}
        return {**changed, "super_scales": self._super_scales_of_groups()[:, first:last], "per_super": 1}

    def pad_rows(self, rows: int) -> CanonicalWeight:
        """Output features whose weight is exactly zero appended, up to ``rows``."""
        short = rows - self.out_features
        if short <= 0:
            return self
        weight = self.plain()

        def padded(table: torch.Tensor | None) -> torch.Tensor | None:
            return None if table is None else torch.nn.functional.pad(table, (0, 0, 0, short))

        table_of_rows = self.table is not None and self.table.ndim == 2 and self.dim == 1
        changed: dict[str, Any] = {
            "codes": padded(weight.codes),
            "scales": padded(weight.scales),
            "zeros": padded(weight.zeros),
            "table": padded(self.table) if table_of_rows else self.table,
            "super_scales": padded(self.super_scales) if self.per_super else self.super_scales,
        }
        return replace(weight, **changed)


_ALIKE = ("bits", "group_size", "kind", "in_features", "dim")


def concat_rows(parts: list[CanonicalWeight]) -> CanonicalWeight:
    """Stack weights along the output (q, k, v -> qkv). All must agree in bits, group, kind and levels of scales.

    Zero points are made explicit when only some parts have them, tables and super-scales of a whole tensor become
    those of its channels where the parts differ. Differing ``g_idx`` cannot be stacked: one gather serves the whole
    matrix; nor can differing tables of vectors.

    Raises:
        ValueError: the parts do not agree.
    """
    if len(parts) == 1:
        return parts[0]
    scales, zeros = concat_tables(parts)
    codes = torch.cat([p.codes for p in parts])
    super_scales, per_super = _concat_super_scales(parts)
    return replace(
        parts[0].plain(), codes=codes, scales=scales, zeros=zeros, table=_concat_codebooks(parts),
        super_scales=super_scales, per_super=per_super,
    )  # fmt: skip


def _concat_codebooks(parts: list[CanonicalWeight]) -> torch.Tensor | None:
    """The table of the stacked parts."""
    tables = [p.table for p in parts if p.table is not None]
    if not tables:
        return None
    shared = parts[0].dim > 1 or all(t.ndim == 1 for t in tables)
    if shared and all(torch.equal(t, tables[0]) for t in tables):
        return tables[0]
    if parts[0].dim > 1:
        raise ValueError("stacked weights differ in their tables of vectors")
    expanded = [t.expand(p.out_features, -1) if t.ndim == 1 else t for t, p in zip(tables, parts, strict=True)]
    return torch.cat(expanded)


def _concat_super_scales(parts: list[CanonicalWeight]) -> tuple[torch.Tensor | None, int]:
    """super_scales and per_super of the stacked parts."""
    found = [p.super_scales for p in parts if p.super_scales is not None]
    if not found:
        return None, 0
    if len(found) != len(parts) or len({p.per_super for p in parts}) != 1:
        raise ValueError("stacked weights differ in their levels of scales")
    if parts[0].per_super:
        return torch.cat(found), parts[0].per_super
    if all(torch.equal(s, found[0]) for s in found):
        return found[0], 0
    groups = parts[0].scales.shape[1]
    return torch.cat([s.expand(p.out_features, 1) for s, p in zip(found, parts, strict=True)]), groups


def concat_tables(parts: list[CanonicalWeight]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Scales and zero points of ``concat_rows``. Raises ValueError as that does."""
    first = parts[0]
    for part in parts[1:]:
        if any(getattr(part, name) != getattr(first, name) for name in _ALIKE):
            raise ValueError("stacked weights differ in " + ", ".join(_ALIKE[:-1]) + f" or {_ALIKE[-1]}")
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
