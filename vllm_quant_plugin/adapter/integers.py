"""An integer weight in one of the forms of ``forms.py``: its columns, codes, scales, zero points and offsets."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vllm_quant_kernels.canonical import CanonicalWeight
from vllm_quant_kernels.scheme import PER_CHANNEL
from vllm_quant_kernels.sizes import round_up
from vllm_quant_plugin.adapter.forms import COLUMNS, GROUPS, MOST_PADDING, Form, Zeros, group_sizes


@dataclass(frozen=True)
class Layout:
    """The columns of a weight as a kernel will see them.

    Attributes:
        group: columns per scale, ``PER_CHANNEL`` for one scale per output channel.
        count: columns, padding included.
        source: None, where column j is input feature j; or int64 (count,): the feature at each column, K for padding.
        groups: int64 (count / group,): the group in the weight's tables of each block of columns; (1,) per channel.
    """

    group: int
    count: int
    source: torch.Tensor | None
    groups: torch.Tensor


def zeros_of(weight: CanonicalWeight) -> Zeros:
    """What kind of zero points an integer weight has."""
    zeros = weight.zeros
    if zeros is None:
        return "none"
    if zeros.dtype != torch.uint8 and not torch.equal(zeros, zeros.round()):
        return "floating"
    inside = not zeros.numel() or (int(zeros.min()) >= 0 and int(zeros.max()) < 1 << weight.bits)
    return "codes" if inside else "wide"


def layouts(weight: CanonicalWeight) -> list[Layout]:
    """The layouts of a weight's columns, the one to prefer first; none where its groups fit no kernel."""
    k, count = weight.in_features, weight.scales.shape[1]
    if count == 1:
        return [straight(weight, PER_CHANNEL)]
    if weight.g_idx is None:
        return [straight(weight, size) for size in group_sizes(weight.group_size, count)]
    g_idx = weight.g_idx.long()
    order = torch.argsort(g_idx, stable=True)
    lengths = torch.bincount(g_idx, minlength=count)
    fitting = [size for size in GROUPS if not bool((lengths % size).any())]
    if not fitting:
        padded = int((-(-lengths // COLUMNS) * COLUMNS).sum())
        fitting = [COLUMNS] if padded <= MOST_PADDING * k else []
    return [_sorted(order, g_idx, lengths, size) for size in fitting]


def straight(weight: CanonicalWeight, size: int) -> Layout:
    """Columns in the order of the input features, ``size`` of them per scale; every group is cut into whole pieces."""
    k, count, device = weight.in_features, weight.scales.shape[1], weight.scales.device
    if size == PER_CHANNEL:
        return Layout(size, round_up(k, COLUMNS), None, torch.zeros(1, dtype=torch.int64, device=device))
    columns = round_up(k, max(COLUMNS, size))
    blocks = torch.arange(columns // size, device=device) * size // (k if count == 1 else weight.group_size)
    # Padding may reach beyond the last group: any scale does for columns whose activations are zero.
    return Layout(size, columns, None, blocks.clamp(max=count - 1))


def _sorted(order: torch.Tensor, g_idx: torch.Tensor, lengths: torch.Tensor, size: int) -> Layout:
    k = order.numel()
    blocks = -(-lengths // size)
    first = (blocks.cumsum(0) - blocks) * size
    within = torch.arange(k, device=order.device) - (lengths.cumsum(0) - lengths)[g_idx[order]]
    columns = round_up(int(blocks.sum()) * size, max(COLUMNS, size))
    source = torch.full((columns,), k, dtype=torch.int64, device=order.device)
    source[first[g_idx[order]] + within] = order
    groups = torch.repeat_interleave(torch.arange(lengths.numel(), device=order.device), blocks)
    return Layout(size, columns, source, torch.nn.functional.pad(groups, (0, columns // size - groups.numel())))


@dataclass(frozen=True)
class Integers:
    """A weight for one of vLLM's kernels.

    Attributes:
        codes: uint8 (N, columns).
        scales: (N, groups), in the dtype of the activations.
        zeros: None, or uint8 (N, groups).
        offsets: None, or (N, groups) in the dtype of the activations: what multiplies the sums of the activations.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    offsets: torch.Tensor | None


def convert(weight: CanonicalWeight, layout: Layout, form: Form, dtype: torch.dtype) -> Integers:
    """``weight`` in ``form``, its columns as in ``layout``; exact, but that scales and offsets round to ``dtype``."""
    w = weight.plain()
    middle, read = 1 << (w.bits - 1), 1 << (form.bits - 1)
    exact = torch.full_like(w.scales, middle, dtype=torch.float32) if w.zeros is None else w.zeros.float()
    if form.zeros or form.folded:
        low, high = (0, (1 << w.bits) - 1) if form.zeros else ((1 << w.bits) - read, read)
        integer = exact.round().clamp(low, high)
    else:
        integer = torch.full_like(exact, middle)
    scales = w.scales.float()
    codes = _columns(w.codes, layout)
    if not form.zeros and (form.folded or form.bits != w.bits):
        size = codes.shape[1] if layout.group == PER_CHANNEL else layout.group
        shift = (read - integer[:, layout.groups]).to(torch.int16).to(torch.uint8)
        # Modulo 256, which the sums are below.
        codes = codes + shift.repeat_interleave(size, dim=1)
    offsets = ((integer - exact) * scales)[:, layout.groups].to(dtype) if form.offset else None
    zeros = integer[:, layout.groups].to(torch.uint8) if form.zeros else None
    return Integers(codes, scales[:, layout.groups].to(dtype), zeros, offsets)


def fits(weight: CanonicalWeight, form: Form) -> bool:
    """Whether the zero points of ``weight`` can be folded into codes of ``form.bits`` bits without a rest."""
    if not form.folded or form.offset or weight.zeros is None:
        return True
    zeros, read = weight.zeros.float(), 1 << (form.bits - 1)
    # 0 <= c - z + read < 2 read for every code c of the weight.
    return bool((zeros <= read).all()) and bool((zeros >= (1 << weight.bits) - read).all())


def _columns(codes: torch.Tensor, layout: Layout) -> torch.Tensor:
    """(N, columns) of codes (N, K), zero where there is padding."""
    padded = torch.nn.functional.pad(codes, (0, max(layout.count - codes.shape[1], 1)))
    return padded[:, : layout.count] if layout.source is None else padded[:, layout.source]
