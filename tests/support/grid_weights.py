"""Weights that GPTQ, AWQ and FP8 all hold exactly, so that one unquantized engine is the reference of every method.

    w[n, k] = c[n, k] * 2**e[n, g]        -7 <= c <= 7, an integer; |c| = 7 somewhere in every group g of 32 columns

e varies between neighbouring groups: scales or zero points of another group or row change the weight.
"""

from __future__ import annotations

import torch

from vllm_quant_kernels.canonical import CanonicalWeight
from vllm_quant_plugin.rtn import quantize
from vllm_quant_plugin.schemes import StoredScheme

GROUP = 32
_TOP = 7


def fits(weight: torch.Tensor) -> bool:
    """Whether a tensor is a matrix whose rows and columns are whole groups."""
    return weight.is_floating_point() and weight.dim() == 2 and not any(size % GROUP for size in weight.shape)


def on_grid(weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """float32 (N, K): ``weight`` rounded to the grid, with a standard deviation near its own."""
    groups = weight.float().reshape(weight.shape[0], -1, GROUP)
    deviation = float(groups.std()) or 1.0
    exponents = torch.randint(-2, 0, groups.shape[:2], generator=generator).unsqueeze(-1)
    steps = torch.exp2(torch.tensor(deviation).log2().round() + exponents)
    codes = (groups / steps).round().clamp(-_TOP, _TOP)
    largest = groups.abs().argmax(dim=-1, keepdim=True)
    codes.scatter_(-1, largest, torch.where(codes.gather(-1, largest) < 0, -_TOP, _TOP).float())
    return (codes * steps).reshape(weight.shape)


def as_stored(weight: torch.Tensor, scheme: StoredScheme) -> CanonicalWeight:
    """``weight``, on the grid, in a scheme of 4 bits in groups of 32 or of FP8; asymmetric ones get two zero points."""
    if scheme.is_int:
        groups = weight.float().reshape(weight.shape[0], -1, GROUP)
        scales = groups.abs().amax(dim=-1) / _TOP
        zeros = None
        if not scheme.symmetric:
            rows, columns = scales.shape
            zeros = (_TOP + (torch.arange(rows).unsqueeze(1) + torch.arange(columns)) % 2).to(torch.uint8)
        offset = 1 << (scheme.bits - 1) if zeros is None else zeros.unsqueeze(-1)
        codes = (groups / scales.unsqueeze(-1) + offset).to(torch.uint8).reshape(weight.shape)
        found = CanonicalWeight(codes, scales.half(), scheme.bits, GROUP, zeros)
    else:
        found = quantize(weight, scheme)
    assert torch.equal(found.dequantize(torch.float32), weight.float()), "not on the grid"
    return found
