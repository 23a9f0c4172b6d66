"""From the canonical form to the packed layouts that the kernels read, and back."""

from __future__ import annotations

import torch

from vllm_quant_kernels.canonical import FP8_DTYPES, CanonicalWeight
from vllm_quant_kernels.cpu import huge_pages, library, native
from vllm_quant_kernels.cpu.layout import (
    BLOCK,
    LANES,
    column_order,
    deinterleave_rows,
    interleave_rows,
    kind_code,
    kind_name,
    pack_planes,
    padded_columns,
    unpack_planes,
)
from vllm_quant_kernels.cpu.weight import PackedInt8, PackedWeight
from vllm_quant_kernels.sizes import round_up
from vllm_quant_kernels.unpack_weight import StoredWeight

INT8_BLOCK = 64
SCALE_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def _narrow_zeros(zeros: torch.Tensor) -> torch.Tensor:
    """uint8 where that is exact, else fp32."""
    if zeros.dtype == torch.uint8:
        return zeros
    wide = zeros.float()
    small = wide.clamp(0, 255).to(torch.uint8)
    return small if torch.equal(small.float(), wide) else wide


def _pack_data(w: CanonicalWeight, source: torch.Tensor | None, rows: int, columns: int) -> torch.Tensor:
    """The planes of the codes, columns in the order of ``source``, padded to (rows, columns)."""
    if isinstance(w, StoredWeight) and w.packs_natively:
        return w.pack_planes(source, columns)
    codes, bits = w.codes.cpu(), w.bits
    if codes.numel() and library.available():
        return native.pack_planes(codes, bits, source, columns)
    n, k = codes.shape
    padded = torch.zeros(rows, columns, dtype=torch.uint8)
    if source is None:
        padded[:n, :k] = codes
    else:
        filled = (source >= 0).nonzero().flatten()
        padded[:n, filled] = codes[:, source[filled].long()]
    return pack_planes(padded, bits)


def pack(w: CanonicalWeight, device: torch.device | str = "cpu") -> PackedWeight:
    """Pack a canonical weight for ``vqp::wna16_linear``.

    Args:
        w: any bits, group size, zero points and ``g_idx`` that the canonical form allows.
        device: where the packed tensors live; only CPU has kernels.

    Raises:
        ValueError: the weight is malformed, or FP8 codes or scales hold NaN or infinity.
    """
    w.validate()
    if not w.is_plain:
        raise ValueError(f"the CPU kernels read integers and FP8 with one level of scales, not {w.kind}")
    if torch.device(device).type != "cpu":
        raise ValueError(f"no kernels for device {device}: pack for cpu")
    n, k = w.out_features, w.in_features
    groups = w.scales.shape[1]
    scales = w.scales.cpu() if w.scales.dtype in SCALE_DTYPES else w.scales.cpu().float()
    if not torch.isfinite(scales).all():
        raise ValueError("scales hold NaN or infinity")
    if w.kind != "int" and not torch.isfinite(w.codes.cpu().view(FP8_DTYPES[w.kind]).float()).all():
        raise ValueError(f"{w.kind} codes hold NaN or infinity")
    zeros = None if w.zeros is None else _narrow_zeros(w.zeros.cpu())
    perm = column_order(groups, w.group_size, k, w.g_idx)
    rows, columns = round_up(n, LANES), padded_columns(k, perm, groups)
    source = None if perm is None else perm[:columns].contiguous()
    return PackedWeight(
        data=_pack_data(w, source, rows, columns),
        scales=interleave_rows(scales, rows),
        zeros=None if zeros is None else interleave_rows(zeros, rows),
        perm=perm,
        kind=kind_code(w.kind),
        bits=w.bits,
        group_size=w.group_size,
        n=n,
        k=k,
    )


def unpack(p: PackedWeight) -> CanonicalWeight:
    """The canonical weight that :func:`pack` started from.

    ``g_idx`` comes back only where it says more than ``group_size`` does; zero points come back as
    uint8 where they are small integers.

    Raises:
        ValueError: the tensors do not fit the layout.
    """
    check_packed(p.data, p.scales, p.zeros, p.perm, p.kind, p.bits, p.group_size, p.n, p.k)
    groups = p.scales.shape[1]
    rows = round_up(p.n, LANES)
    padded = unpack_planes(p.data, p.bits, rows)[: p.n]
    g_idx = None
    if p.perm is None:
        codes = padded[:, : p.k].contiguous()
    else:
        columns = padded_columns(p.k, p.perm, groups)
        source, starts = p.perm[:columns].long(), p.perm[columns:].long()
        filled = (source >= 0).nonzero().flatten()
        codes = torch.empty(p.n, p.k, dtype=torch.uint8)
        codes[:, source[filled]] = padded[:, filled]
        index = torch.empty(p.k, dtype=torch.int64)
        index[source[filled]] = torch.bucketize(filled, starts[1:], right=True)
        if not torch.equal(index, torch.arange(p.k) // p.group_size):
            g_idx = index.int()
    return CanonicalWeight(
        codes=codes,
        scales=deinterleave_rows(p.scales, p.n),
        bits=p.bits,
        group_size=p.group_size,
        zeros=None if p.zeros is None else deinterleave_rows(p.zeros, p.n),
        kind=kind_name(p.kind),  # type: ignore[arg-type]
        g_idx=g_idx,
    )


def check_packed(
    data: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    perm: torch.Tensor | None,
    kind: int,
    bits: int,
    group_size: int,
    n: int,
    k: int,
) -> None:
    """Refuse tensors that are not in the layout of this version. Raises ValueError."""
    kind_name(kind)
    if not 2 <= bits <= 8:
        raise ValueError(f"bits must be 2..8, got {bits}")
    rows = round_up(n, LANES)
    if scales.ndim != 3 or scales.shape[0] * LANES != rows or scales.shape[2] != LANES:
        raise ValueError(f"scales must be ({rows // LANES}, G, {LANES}), got {tuple(scales.shape)}")
    groups = scales.shape[1]
    if perm is None:
        columns = round_up(k, BLOCK)
        if groups != 1 and (group_size % LANES or -(-k // group_size) != groups):
            raise ValueError(f"{groups} groups of {group_size} do not make K = {k}")
    else:
        columns = perm.numel() - groups - 1
        if columns < k or columns % BLOCK or int(perm[-1]) != columns:
            raise ValueError(f"perm of {perm.numel()} entries does not fit K = {k} in {groups} groups")
    if data.dtype != torch.uint8 or data.ndim != 1 or data.numel() != rows * columns * bits // 8:
        raise ValueError(
            f"data must be uint8 ({rows * columns * bits // 8},) for {n} x {k} at {bits} bits, "
            f"got {data.dtype} {tuple(data.shape)}"
        )
    if scales.dtype not in SCALE_DTYPES or (zeros is not None and zeros.dtype not in (torch.uint8, torch.float32)):
        raise ValueError("scales must be bf16, fp16 or fp32, zeros uint8 or fp32")
    if zeros is not None and zeros.shape != scales.shape:
        raise ValueError(f"zeros {tuple(zeros.shape)} must match scales {tuple(scales.shape)}")


def pack_int8(codes: torch.Tensor, scales: torch.Tensor) -> PackedInt8:
    """Pack an int8 (N, K) weight with scales (N,) or (N, 1) for ``vqp::w8a8_linear``.

    Raises:
        ValueError: wrong dtype or shape, or scales that are not finite.
    """
    if codes.dtype != torch.int8 or codes.ndim != 2:
        raise ValueError(f"codes must be int8 (N, K), got {codes.dtype} {tuple(codes.shape)}")
    n, k = codes.shape
    if scales.numel() != n or not scales.is_floating_point():
        raise ValueError(f"scales must be floating ({n},), got {scales.dtype} {tuple(scales.shape)}")
    if not torch.isfinite(scales).all():
        raise ValueError("scales hold NaN or infinity")
    rows, columns = round_up(n, LANES), round_up(k, INT8_BLOCK)
    padded = torch.zeros(rows, columns, dtype=torch.int8)
    padded[:n, :k] = codes.cpu()
    wide = torch.zeros(rows, dtype=torch.float32)
    wide[:n] = scales.cpu().float().flatten()
    # Four codes move as one 32-bit word.
    quads = padded.view(torch.int32).view(rows // LANES, LANES, columns // 4)
    data = huge_pages.empty_bytes(rows * columns)
    data.view(torch.int32).view(rows // LANES, columns // 4, LANES).copy_(quads.transpose(1, 2))
    return PackedInt8(data.view(torch.int8), wide, padded.sum(dim=1, dtype=torch.int32), n, k)


def unpack_int8(data: torch.Tensor, n: int, k: int) -> torch.Tensor:
    """int8 (N, K) codes from the ``data`` of a :class:`PackedInt8`. Raises ValueError on a wrong size."""
    rows, columns = round_up(n, LANES), round_up(k, INT8_BLOCK)
    if data.dtype != torch.int8 or data.numel() != rows * columns:
        raise ValueError(f"data must be int8 ({rows * columns},) for {n} x {k}, got {data.dtype} {tuple(data.shape)}")
    wide = data.view(rows // LANES, columns // 4, LANES, 4).transpose(1, 2).reshape(rows, columns)
    return wide[:n, :k].contiguous()
