"""Weights as the CPU kernels read them."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class PackedWeight:
    """A weight in the layout of :mod:`vllm_quant_kernels.cpu.layout`.

    Attributes:
        data: uint8 1-D, the code planes.
        scales: (Np/16, G, 16) bf16, fp16 or fp32.
        zeros: None, or (Np/16, G, 16) uint8 or fp32.
        perm: None, or int32 (Kp + G + 1): source columns, then the first column of each group's run.
        kind: integer from :func:`vllm_quant_kernels.cpu.layout.kind_code`.
        bits, group_size: as in the canonical weight.
        n, k: out_features and in_features, without padding.
    """

    data: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    perm: torch.Tensor | None
    kind: int
    bits: int
    group_size: int
    n: int
    k: int

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.nbytes for t in (self.data, self.scales, self.zeros, self.perm) if t is not None)


@dataclass(frozen=True)
class PackedInt8:
    """A signed 8-bit weight with one scale per output channel, for W8A8.

    ``data`` is int8 [Np/16][Kp/4][16 channels][4 input features], Kp = K rounded up to 64, 1-D;
    ``scales`` fp32 (Np,); ``sums`` int32 (Np,), the sum of each channel's codes. The padding is zero.
    """

    data: torch.Tensor
    scales: torch.Tensor
    sums: torch.Tensor
    n: int
    k: int

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return self.data.nbytes + self.scales.nbytes + self.sums.nbytes
