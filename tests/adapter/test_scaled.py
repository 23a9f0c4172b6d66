"""INT8 and FP8 weights in front of vLLM's kernels, against what vLLM's own loaders hand over, and their products."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.config import CompilationConfig, VllmConfig, set_current_vllm_config
from vllm.model_executor.kernels import linear as kernels
from vllm.model_executor.layers.quantization.input_quant_fp8 import QuantFP8
from vllm.model_executor.layers.quantization.utils.fp8_utils import (
    process_fp8_weight_channel_strategy,
    process_fp8_weight_tensor_strategy,
)

from tests.kernels.weights import random_weight
from tests.support.fake_cuda import fake_cuda
from vllm_quant_kernels.canonical import CanonicalWeight
from vllm_quant_kernels.reference import quantize_activation
from vllm_quant_kernels.scheme import E4M3, PER_CHANNEL, ActivationScheme, Int, WeightScheme
from vllm_quant_plugin.adapter.identity import weight_of
from vllm_quant_plugin.adapter.kernels import VllmW8A8
from vllm_quant_plugin.adapter.scaled import build_fp8, build_int8

BF16 = torch.bfloat16
STATIC = {"low": torch.tensor(-3.0), "high": torch.tensor(2.5), "scale": torch.tensor(3.0 / 127)}


@pytest.fixture(autouse=True)
def hopper(monkeypatch: pytest.MonkeyPatch) -> Any:
    fake_cuda(monkeypatch, (9, 0))
    monkeypatch.setattr(kernels.scaled_mm.cutlass, "cutlass_fp8_supported", lambda: True)
    monkeypatch.setattr(QuantFP8, "forward_cuda", QuantFP8.forward_native)
    with set_current_vllm_config(VllmConfig(compilation_config=CompilationConfig(mode=0))):
        yield


def int8_product(self: Any, layer: Any, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """What CUTLASS computes from the parameters, by the formulas of its epilogues."""
    w, scale, in_scale, in_zero, correction = self._get_layer_params(layer)
    q, x_scale, x_zero = quantize_activation(x, correction is None, in_scale, in_zero)
    total = q.double() @ w.double()
    if correction is not None:
        total -= correction.double() * (1 if in_zero is not None else x_zero.double())
    return (total * x_scale.double() * scale.double().view(1, -1)).to(x.dtype)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dynamic", [True, False])
def test_int8(symmetric: bool, dynamic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels.CutlassInt8ScaledMMLinearKernel, "apply_weights", int8_product)
    weight = random_weight(40, 100, 8)
    act = ActivationScheme(Int(8), "token" if dynamic else "tensor", dynamic, symmetric)
    module = build_int8(weight, act, STATIC, BF16)
    x = torch.randn(5, 100, dtype=BF16)
    q, scale, zero = quantize_activation(
        x, symmetric, *((None, None) if dynamic else (module.input_scale, module.input_zero_point))
    )
    exact = ((q.double() - zero.double()) * scale.double()) @ weight.dequantize(torch.float64).T
    assert torch.allclose(module(x).double(), exact, rtol=2.0**-8, atol=1e-6)
    if not dynamic and not symmetric:
        assert int(module.input_zero_point) == round(-128 + 3.0 / (5.5 / 255))
    found = weight_of(module)
    assert torch.allclose(
        found.double(), weight.dequantize(torch.float64), rtol=0.02, atol=0.02 * float(found.abs().max())
    )
    scheme = WeightScheme(Int(8), PER_CHANNEL, activation=act)
    assert VllmW8A8().packed_bytes(scheme, 40, 100) == pytest.approx(sum(p.nbytes for p in module.parameters()), abs=4)


def fp8_weight(n: int, k: int, group: int | None = None) -> CanonicalWeight:
    weight = random_weight(n, k, 8, group, kind="fp8_e4m3")
    if group is None:
        return weight
    tiles = weight.scales[::128]
    return CanonicalWeight(weight.codes, tiles.repeat_interleave(128, 0)[:n].contiguous(), 8, group, kind="fp8_e4m3")


def fp8_product(self: Any, *, A, B, out_dtype, As, Bs, bias, output_shape):  # type: ignore[no-untyped-def]
    return (A.double() @ B.double() * As.double() * Bs.double().view(1, -1)).to(out_dtype).view(*output_shape[:-1], -1)


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("one_scale", [True, False])
def test_fp8(dynamic: bool, one_scale: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels.CutlassFP8ScaledMMLinearKernel, "apply_scaled_mm", fp8_product)
    weight = fp8_weight(48, 160)
    if one_scale:
        weight = CanonicalWeight(weight.codes, torch.full((48, 1), 0.03), 8, 160, kind="fp8_e4m3")
    module = build_fp8(weight, ActivationScheme(E4M3, "token" if dynamic else "tensor", dynamic), STATIC, BF16)
    assert type(module.kernel).__name__ == "CutlassFP8ScaledMMLinearKernel"
    rows = weight.codes.view(torch.float8_e4m3fn)
    if one_scale:
        theirs = process_fp8_weight_tensor_strategy(rows.clone(), torch.tensor(0.03), [48])
    else:
        theirs = process_fp8_weight_channel_strategy(rows, weight.scales)
    assert torch.equal(module.weight.view(torch.uint8), theirs[0].view(torch.uint8))
    assert module.weight.stride() == theirs[0].stride()
    assert torch.equal(module.weight_scale.data, theirs[1])
    assert (module.input_scale is None) == dynamic
    exact = weight.dequantize(torch.float64)
    assert torch.allclose(weight_of(module).double(), exact, rtol=2.0**-7, atol=1e-6)


def test_fp8_blocks_are_what_fp8_py_hands_over(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def process(self: Any, layer: Any) -> None:
        seen.update(weight=layer.weight.data, scale=layer.weight_scale_inv.data, block=layer.weight_block_size)

    def blocks(**kwargs: Any) -> Any:
        seen.update(kwargs)
        return SimpleNamespace(process_weights_after_loading=lambda layer: process(None, layer))

    monkeypatch.setattr("vllm_quant_plugin.compat_adapter.init_fp8_linear_kernel", blocks)
    weight = fp8_weight(300, 256, 128)
    act = ActivationScheme(E4M3, "group", group_size=128)
    module = build_fp8(weight, act, None, BF16)
    assert seen["weight"].view(torch.uint8).equal(weight.codes)
    assert seen["scale"].equal(weight.scales[::128].contiguous())
    assert (seen["block"], tuple(seen["scale"].shape)) == ([128, 128], (3, 2))
    assert seen["weight_quant_key"].scale.group_shape == (128, 128)
    assert seen["activation_quant_key"].scale.group_shape == (1, 128)
    assert module.input_scale is None
    bad = CanonicalWeight(weight.codes[64:], weight.scales[64:], 8, 128, kind="fp8_e4m3")
    assert "128 x 128" in str(VllmW8A8().refuses(bad))


@pytest.mark.parametrize("blocks", [True, False])
def test_fp8_weight_only_goes_to_marlin_or_humming(blocks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Marlin as far as its own repacking, which is GPU code: (K, N) in the order that fp8.py gives it."""
    fake_cuda(monkeypatch, (8, 0), with_humming=False)
    seen: dict[str, Any] = {}

    def process(self: Any, layer: Any) -> None:
        seen.update(weight=layer.weight.data, block=layer.weight_block_size, size_k_first=self.size_k_first)

    monkeypatch.setattr(kernels.MarlinFP8ScaledMMLinearKernel, "process_weights_after_loading", process)
    weight = fp8_weight(128, 256, 128 if blocks else None)
    module = build_fp8(weight, None, None, BF16)
    assert isinstance(module.kernel, kernels.MarlinFP8ScaledMMLinearKernel)
    assert seen["size_k_first"] is not blocks
    assert seen["weight"].shape == ((128, 256) if blocks else (256, 128))
    assert seen["block"] == ([128, 128] if blocks else None)
