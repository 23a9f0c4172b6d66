"""On a GPU the canonical form and the activation quantizer give, bit for bit, what they give on the CPU.

Needs torch and pytest only. Every operation in them is elementwise or a maximum, and IEEE 754
leaves no choice in those, so equality is exact. All GPU kernels are held to this reference.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch

from vllm_quant_kernels import reference
from vllm_quant_kernels.canonical import CanonicalWeight

N, K = 96, 320


def to_gpu(weight: CanonicalWeight) -> CanonicalWeight:
    fields = {field.name: getattr(weight, field.name) for field in dataclasses.fields(weight)}
    return CanonicalWeight(**{name: v.cuda() if isinstance(v, torch.Tensor) else v for name, v in fields.items()})


def integer_weight(bits: int, group_size: int, zeros: bool, act_order: bool) -> CanonicalWeight:
    generator = torch.Generator().manual_seed(bits * 1000 + group_size)
    groups = -(-K // group_size)
    codes = torch.randint(0, 1 << bits, (N, K), generator=generator, dtype=torch.uint8)
    scales = torch.rand(N, groups, generator=generator) + 0.01
    table = torch.randint(0, 1 << bits, (N, groups), generator=generator, dtype=torch.uint8) if zeros else None
    order = torch.randperm(K, generator=generator)
    g_idx = (torch.arange(K) // group_size)[order].int() if act_order else None
    return CanonicalWeight(codes, scales, bits, group_size, table, "int", g_idx).validate()


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("group_size", [32, 128, K])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("act_order", [False, True])
def test_integer_weights(bits: int, group_size: int, zeros: bool, act_order: bool) -> None:
    weight = integer_weight(bits, group_size, zeros, act_order)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        assert torch.equal(to_gpu(weight).dequantize(dtype).cpu(), weight.dequantize(dtype))


@pytest.mark.parametrize(("kind", "finite"), [("fp8_e4m3", 0x7F), ("fp8_e5m2", 0x7C)])
def test_every_finite_fp8_code(kind: str, finite: int) -> None:
    magnitudes = torch.arange(finite, dtype=torch.uint8)
    codes = torch.cat([magnitudes, magnitudes | 0x80]).reshape(1, -1)
    weight = CanonicalWeight(codes, torch.tensor([[0.37]]), 8, codes.shape[1], None, kind).validate()  # type: ignore[arg-type]
    assert torch.equal(to_gpu(weight).dequantize().cpu(), weight.dequantize())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_activations(symmetric: bool, dtype: torch.dtype) -> None:
    x = torch.randn(33, K, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[7] = 0
    on_gpu = reference.quantize_activation(x.cuda(), symmetric)
    for ours, theirs in zip(on_gpu, reference.quantize_activation(x, symmetric), strict=True):
        assert torch.equal(ours.cpu(), theirs)
