"""A weight as the weight-only CUDA kernels read it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from vllm_quant_kernels.cuda.layout import ROW_TILE, bits_of
from vllm_quant_kernels.sizes import round_up


@dataclass(frozen=True)
class PackedCuda:
    """A weight for ``vqp::wna16_linear_cuda``.

    Attributes:
        data: uint8 1-D, see :mod:`vllm_quant_kernels.cuda.layout`.
        scales: (Np/16, G, 16) bf16, fp16 or fp32.
        zeros: None; uint8, the zero points; or fp32, the zero points minus 2**(bits - 1). Shape of ``scales``.
        perm: None, or int32 (Kp,): the input feature at each packed column, -1 for padding.
        kind: 2..8, the bits of an integer code, or 9 for FP8 E4M3.
        group_size: columns a group, a power of two from 16; any value when G is 1.
        n, k: out_features and in_features, without padding.
    """

    data: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    perm: torch.Tensor | None
    kind: int
    group_size: int
    n: int
    k: int

    @property
    def k_padded(self) -> int:
        """Columns in the packed form."""
        return self.data.shape[-1] * 8 // (bits_of(self.kind) * round_up(self.n, ROW_TILE))

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.nbytes for t in (self.data, self.scales, self.zeros, self.perm) if t is not None)

    @property
    def padding(self) -> float:
        """The share of packed codes that is padding, 0 to 1."""
        return 1 - self.n * self.k / (self.data.shape[-1] * 8 / bits_of(self.kind))

    def expert(self, index: int) -> PackedCuda:
        """One of a stack of weights whose tensors have a leading expert dimension."""
        zeros, perm = (None if t is None else t[index] for t in (self.zeros, self.perm))
        return replace(self, data=self.data[index], scales=self.scales[index], zeros=zeros, perm=perm)
