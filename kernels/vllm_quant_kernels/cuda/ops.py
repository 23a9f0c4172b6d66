"""The CUDA operators: ``vqp::wna16_linear_cuda`` and its grouped form ``vqp::wna16_experts_cuda``.

Definitions, CUDA implementations, fakes, and CPU implementations that compute the reference from the
same packed tensors.
"""

from __future__ import annotations

import torch

from vllm_quant_kernels.cuda import native
from vllm_quant_kernels.cuda.layout import ROW_TILE, SLAB, bits_of
from vllm_quant_kernels.cuda.pack import dequantize_cuda
from vllm_quant_kernels.cuda.weight import PackedCuda

_LIB = torch.library.Library("vqp", "FRAGMENT")
_WEIGHT = (
    "Tensor data, Tensor scales, Tensor? zeros, Tensor? perm, Tensor? bias, int kind, int group_size, int n, int k"
)
_LIB.define(f"wna16_linear_cuda(Tensor x, {_WEIGHT}, bool batch_invariant) -> Tensor")
_LIB.define(
    f"wna16_experts_cuda(Tensor x, {_WEIGHT}, Tensor rows, Tensor experts, Tensor padded_rows, "
    "Tensor? row_scales, int tokens, int top_k, int pairs, bool batch_invariant) -> Tensor"
)


def _weight(
    x: torch.Tensor,
    data: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    perm: torch.Tensor | None,
    bias: torch.Tensor | None,
    kind: int,
    group_size: int,
    n: int,
    k: int,
) -> PackedCuda:
    """The weight of the arguments that both operators share, checked against x. Raises ValueError."""
    if x.dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(f"x must be bf16 or fp16, got {x.dtype}")
    if x.ndim == 0 or x.shape[-1] != k:
        raise ValueError(f"x must be (..., {k}), got {tuple(x.shape)}")
    tiles = -(-n // ROW_TILE)
    if scales.ndim < 3 or scales.shape[-3] != tiles or scales.shape[-1] != ROW_TILE or not scales.is_contiguous():
        raise ValueError(f"scales must be contiguous (..., {tiles}, G, {ROW_TILE}), got {tuple(scales.shape)}")
    slab_row = 128 * bits_of(kind) * tiles
    if data.dtype != torch.uint8 or data.shape[-1] % slab_row or data.shape[-1] // slab_row * SLAB < k:
        raise ValueError(f"data of {data.shape[-1]} bytes does not hold {n} x {k} codes of kind {kind}")
    if bias is not None and (bias.shape[-1] != n or not bias.is_floating_point()):
        raise ValueError(f"bias must be floating (..., {n}), got {bias.dtype} {tuple(bias.shape)}")
    return PackedCuda(data, scales, zeros, perm, kind, group_size, n, k)


def _gemm(
    x: torch.Tensor, packed: PackedCuda, bias: torch.Tensor | None, factor: torch.Tensor | None = None
) -> torch.Tensor:
    out = x.float() @ dequantize_cuda(packed).T
    out = out if bias is None else out + bias.float()
    return (out if factor is None else out * factor).to(x.dtype)


def _linear_cuda(  # type: ignore[no-untyped-def]
    x, data, scales, zeros, perm, bias, kind, group_size, n, k, batch_invariant
) -> torch.Tensor:
    packed = _weight(x, data, scales, zeros, perm, bias, kind, group_size, n, k)
    return native.wna16_linear(x, packed, bias, batch_invariant)


def _linear_cpu(  # type: ignore[no-untyped-def]
    x, data, scales, zeros, perm, bias, kind, group_size, n, k, batch_invariant
) -> torch.Tensor:
    return _gemm(x, _weight(x, data, scales, zeros, perm, bias, kind, group_size, n, k), bias)


def _linear_fake(  # type: ignore[no-untyped-def]
    x, data, scales, zeros, perm, bias, kind, group_size, n, k, batch_invariant
) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], n))


def _check_tiles(
    rows: torch.Tensor,
    experts: torch.Tensor,
    padded_rows: torch.Tensor,
    row_scales: torch.Tensor | None,
    tokens: int,
    pairs: int,
) -> None:
    if tokens not in (8, 16, 32, 64, 128) or rows.numel() % tokens or experts.numel() < rows.numel() // tokens:
        raise ValueError(f"{rows.numel()} rows and {experts.numel()} experts do not make tiles of {tokens}")
    if any(t.dtype != torch.int32 for t in (rows, experts, padded_rows)):
        raise ValueError("rows, experts and padded_rows must be int32")
    if row_scales is not None and (row_scales.dtype != torch.float32 or row_scales.shape != (pairs,)):
        raise ValueError(f"row_scales must be float32 ({pairs},), got {row_scales.dtype} {tuple(row_scales.shape)}")


def _experts_cuda(  # type: ignore[no-untyped-def]
    x, data, scales, zeros, perm, bias, kind, group_size, n, k,
    rows, experts, padded_rows, row_scales, tokens, top_k, pairs, batch_invariant,
) -> torch.Tensor:  # fmt: skip
    packed = _weight(x, data, scales, zeros, perm, bias, kind, group_size, n, k)
    _check_tiles(rows, experts, padded_rows, row_scales, tokens, pairs)
    return native.wna16_experts(
        x, packed, bias, rows, experts, padded_rows, row_scales, tokens, top_k, pairs, batch_invariant
    )


def _experts_cpu(  # type: ignore[no-untyped-def]
    x, data, scales, zeros, perm, bias, kind, group_size, n, k,
    rows, experts, padded_rows, row_scales, tokens, top_k, pairs, batch_invariant,
) -> torch.Tensor:  # fmt: skip
    packed = _weight(x, data, scales, zeros, perm, bias, kind, group_size, n, k)
    _check_tiles(rows, experts, padded_rows, row_scales, tokens, pairs)
    out = x.new_zeros(pairs, n)
    for tile in range(int(padded_rows) // tokens):
        e, pair = int(experts[tile]), rows[tile * tokens : (tile + 1) * tokens].long()
        pair = pair[pair < pairs]
        if not 0 <= e < data.shape[0]:
            continue
        factor = None if row_scales is None else row_scales[pair, None]
        out[pair] = _gemm(x[pair // top_k], packed.expert(e), None if bias is None else bias[e], factor)
    return out


def _experts_fake(  # type: ignore[no-untyped-def]
    x, data, scales, zeros, perm, bias, kind, group_size, n, k,
    rows, experts, padded_rows, row_scales, tokens, top_k, pairs, batch_invariant,
) -> torch.Tensor:  # fmt: skip
    return x.new_empty((pairs, n))


_LIB.impl("wna16_linear_cuda", _linear_cuda, "CUDA")
_LIB.impl("wna16_linear_cuda", _linear_cpu, "CPU")
_LIB.impl("wna16_experts_cuda", _experts_cuda, "CUDA")
_LIB.impl("wna16_experts_cuda", _experts_cpu, "CPU")
torch.library.register_fake("vqp::wna16_linear_cuda", _linear_fake, lib=_LIB)
torch.library.register_fake("vqp::wna16_experts_cuda", _experts_fake, lib=_LIB)


def linear_cuda(
    x: torch.Tensor, packed: PackedCuda, bias: torch.Tensor | None = None, batch_invariant: bool = False
) -> torch.Tensor:
    """Weight-only quantized linear on a GPU: x (..., K) bf16 or fp16 to (..., N) of the same dtype.

    Products are accumulated in FP32 and scaled per group in FP32; the order of the sum is fixed, so
    results repeat bit for bit. With ``batch_invariant`` they do so whatever the other rows are.
    """
    p = packed
    return torch.ops.vqp.wna16_linear_cuda(
        x, p.data, p.scales, p.zeros, p.perm, bias, p.kind, p.group_size, p.n, p.k, batch_invariant
    )


def experts_cuda(
    x: torch.Tensor,
    packed: PackedCuda,
    rows: torch.Tensor,
    experts: torch.Tensor,
    padded_rows: torch.Tensor,
    tokens: int,
    top_k: int,
    pairs: int,
    bias: torch.Tensor | None = None,
    row_scales: torch.Tensor | None = None,
    batch_invariant: bool = False,
) -> torch.Tensor:
    """The grouped form: row j of the result is x[j // top_k] times its expert's weight, for ``pairs`` rows.

    A row that no tile names is undefined.

    Args:
        packed: tensors with a leading expert dimension.
        rows: int32, tiles of ``tokens`` pairs sorted by expert; entries >= ``pairs`` are padding (vLLM's
            ``moe_align_block_size`` with block size ``tokens`` gives rows, experts and padded_rows).
        experts: int32, the expert of each tile. The rows of one that ``packed`` does not hold (negative, or past
            the last) become zero.
        padded_rows: int32, one element: rows in use.
        tokens: 8, 16, 32, 64, or 128 on Hopper; 16 with floating zero points. :func:`tile_tokens` chooses.
        bias: None, or (experts, N).
        row_scales: None, or float32 (pairs,): the factor of each row, applied in FP32 after the bias.
    """
    p = packed
    return torch.ops.vqp.wna16_experts_cuda(
        x, p.data, p.scales, p.zeros, p.perm, bias, p.kind, p.group_size, p.n, p.k,
        rows, experts, padded_rows, row_scales, tokens, top_k, pairs, batch_invariant,
    )  # fmt: skip


def tile_tokens(
    packed: PackedCuda, pairs: int, experts: int, device: torch.device, batch_invariant: bool = False
) -> int:
    """Rows a tile of the grouped form should have: enough for an expert's share of ``pairs``, if all get the same.

    128 needs a Hopper ``device`` and groups of 32 and more, and does not keep a row's bits whatever the batch.
    """
    if packed.zeros is not None and packed.zeros.dtype == torch.float32:
        return 16
    share = -(-pairs // max(1, experts))
    if share > 64 and packed.group_size >= 32 and not batch_invariant and native.has_warpgroups(device):
        return 128
    return next((tokens for tokens in (8, 16, 32) if share <= tokens), 64)
