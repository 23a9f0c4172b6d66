"""Activation quantization on a GPU is, bit for bit, the formulas on the CPU. Needs torch and pytest only."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vllm_quant_kernels.cuda.w8a8 import activation
from vllm_quant_kernels.cuda.w8a8.activation import FP8, INT8
from vllm_quant_kernels.cuda.w8a8.quantize import quantize_cuda

SCHEMES: dict[str, dict[str, Any]] = {
    "int8": {"kind": INT8},
    "int8-asymmetric": {"kind": INT8, "symmetric": False},
    "int8-static": {"kind": INT8, "in_scale": torch.tensor([0.031])},
    "int8-static-zero": {
        "kind": INT8,
        "in_scale": torch.tensor([0.017]),
        "in_zero": torch.tensor([-37], dtype=torch.int32),
    },
    "fp8": {"kind": FP8},
    "fp8-static": {"kind": FP8, "in_scale": torch.tensor([0.0071])},
    "fp8-groups": {"kind": FP8, "group": 128},
}


def on_gpu(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value.cuda() if isinstance(value, torch.Tensor) else value for name, value in options.items()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("shape", [(1, 2048), (33, 4096), (64, 131), (257, 8192), (5, 28672), (3, 70000), (0, 64)])
def test_codes_and_scales_are_the_reference(shape: tuple[int, int], scheme: str, dtype: torch.dtype) -> None:
    m, k = shape
    x = torch.randn(m, k, generator=torch.Generator().manual_seed(k)).to(dtype)
    x *= torch.logspace(-3, 3, max(m, 1))[:m, None].to(dtype)
    if m > 2:
        x[0], x[1], x[2, 7], x[2, 9] = 0, 3.25, torch.nan, torch.inf
    expected = activation.quantize(x, **SCHEMES[scheme])
    found = quantize_cuda(x.cuda(), **on_gpu(SCHEMES[scheme]))
    assert torch.equal(found.q.cpu().view(torch.uint8), expected.q.view(torch.uint8))
    assert torch.equal(found.scales.cpu()[..., :m], expected.scales[..., :m])
    assert (found.zeros is None) == (expected.zeros is None)
    assert found.zeros is None or torch.equal(found.zeros.cpu(), expected.zeros)


def test_graph_replay() -> None:
    x = torch.randn(64, 4096, device="cuda", dtype=torch.bfloat16)
    quantize_cuda(x, FP8)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        a = quantize_cuda(x, FP8)
    for seed in range(3):
        x.copy_(torch.randn(64, 4096, generator=torch.Generator().manual_seed(seed)))
        graph.replay()
        expected = activation.quantize(x.cpu(), FP8)
        assert torch.equal(a.q.cpu().view(torch.uint8), expected.q.view(torch.uint8))
        assert torch.equal(a.scales.cpu(), expected.scales)
