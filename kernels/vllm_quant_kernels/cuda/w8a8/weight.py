"""Weights of 8-bit products on a GPU: plain rows of codes, which every kernel there can read.

    codes   (N, Kp)  int8 or float8_e4m3fn, Kp = K rounded up to 16, padding zero
    scales  (N,)  or, in blocks, (ceil(N / 128), ceil(K / 128))     float32
    sums    (N,)  int32: the sum of each row's INT8 codes, for zero points of the activations

Eight-bit codes go to the tensor cores as they are, and ldmatrix makes their fragments from rows, so there is
nothing to gain from an order of their own; torch and DeepGEMM read the same tensor.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vllm_quant_kernels.canonical import CanonicalWeight
from vllm_quant_kernels.cuda.w8a8.activation import FP8, GROUP, INT8, Activations, dequantize
from vllm_quant_kernels.sizes import round_up


@dataclass(frozen=True)
class WeightW8A8:
    """One weight; ``kind`` is ``activation.INT8`` or ``FP8``, ``n`` and ``k`` are without padding."""

    codes: torch.Tensor
    scales: torch.Tensor
    sums: torch.Tensor | None
    kind: int
    n: int
    k: int

    @property
    def blocks(self) -> bool:
        """Whether the scales are of 128 x 128 blocks."""
        return self.scales.ndim == 2

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.nbytes for t in (self.codes, self.scales, self.sums) if t is not None)


def block_scales(w: CanonicalWeight) -> torch.Tensor | None:
    """(ceil(N / 128), G) where the scales of ``w`` are those of 128 x 128 blocks, else None."""
    n, groups = w.scales.shape
    if w.group_size != GROUP or groups != -(-w.in_features // GROUP):
        return None
    first = w.scales[::GROUP].float()
    same = torch.equal(first.repeat_interleave(GROUP, dim=0)[:n], w.scales.float())
    return first.contiguous() if same else None


def serves(w: CanonicalWeight) -> bool:
    """Whether an 8-bit product can use this weight: INT8 or FP8 E4M3 without zero points or act-order, one scale a
    channel (or, FP8, 128 x 128 blocks)."""
    if w.bits != 8 or w.kind not in ("int", "fp8_e4m3") or not w.is_plain or w.zeros is not None or w.g_idx is not None:
        return False
    limit = (1 << 17) - 16
    if w.scales.shape[1] == 1:
        return w.in_features <= limit
    return w.kind == "fp8_e4m3" and w.in_features <= limit and block_scales(w) is not None


def make_weight(w: CanonicalWeight) -> WeightW8A8:
    """The codes and scales of a canonical weight, on the device that it is on.

    Raises:
        ValueError: ``serves`` says no, or codes or scales hold NaN or infinity.
    """
    if not serves(w):
        raise ValueError("8-bit products need INT8 or FP8 E4M3 codes with a scale a channel, or FP8 128 x 128 blocks")
    if not torch.isfinite(w.scales).all():
        raise ValueError("scales hold NaN or infinity")
    n, k = w.codes.shape
    if w.kind == "int":
        kind, codes = INT8, (w.codes ^ 0x80).view(torch.int8)
        sums = codes.sum(dim=1, dtype=torch.int32)
    else:
        kind, codes, sums = FP8, w.codes, None
        if bool(((codes & 0x7F) == 0x7F).any()):
            raise ValueError("fp8_e4m3 codes hold NaN")
        codes = codes.view(torch.float8_e4m3fn)
    scales = w.scales[:, 0].float() if w.scales.shape[1] == 1 else block_scales(w)
    assert scales is not None
    if k % 16:
        padded = codes.new_zeros((n, round_up(k, 16)), dtype=torch.uint8)
        padded[:, :k] = codes.view(torch.uint8)
        codes = padded.view(codes.dtype)
    return WeightW8A8(codes.contiguous(), scales.contiguous(), sums, kind, n, k)


def dequantize_weight(w: WeightW8A8, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """(N, K) in ``dtype``, computed in float64 when that is asked for, else in float32."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    codes, scales = w.codes[:, : w.k].to(wide), w.scales.to(wide)
    if not w.blocks:
        return (codes * scales[:, None]).to(dtype)
    by_row = scales.repeat_interleave(GROUP, dim=0)[: w.n]
    return (codes * by_row.repeat_interleave(GROUP, dim=1)[:, : w.k]).to(dtype)


def product(a: Activations, w: WeightW8A8, bias: torch.Tensor | None) -> torch.Tensor:
    """What the kernels compute from quantized activations: (M, N) float32.

    INT8 sums are exact; scales and bias round as in the kernels. FP8 is summed in float64.
    """
    if w.kind == FP8:
        out = (dequantize(a, w.k) @ dequantize_weight(w, torch.float64).T).float()
    else:
        codes = a.q[:, : w.k].double() - (0 if a.zeros is None else a.zeros.double().view(-1, 1))
        total = (codes @ w.codes[:, : w.k].double().T).float()
        out = total * (a.scales.view(-1, 1) * w.scales)
    return out if bias is None else out + bias.float()
