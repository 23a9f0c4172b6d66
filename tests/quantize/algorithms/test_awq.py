"""The AWQ search against direct computation in float64, and what folding must not change."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vllm_quant_plugin.quantize.algorithms import awq
from vllm_quant_plugin.quantize.engine.fold import apply_fold, find_fold, tie_heads
from vllm_quant_plugin.quantize.engine.statistics import Group, relative_error
from vllm_quant_plugin.rtn import quantize_int


def _problem(seed: int = 0, n: int = 24, k: int = 64, tokens: int = 400):
    """Weights, inputs with a few outlier channels, and the second moment."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(n, k, generator=generator)
    x = torch.randn(tokens, k, generator=generator)
    x[:, ::13] *= 12
    return weight, x, x.T @ x


@pytest.mark.parametrize("symmetric", [True, False])
def test_output_error_is_that_of_the_data(symmetric: bool) -> None:
    weight, x, hessian = _problem()
    grid = awq.Grid(3, 16, symmetric, torch.float16)
    scale = torch.rand(64) + 0.5
    rounded = quantize_int(weight * scale, 3, 16, symmetric=symmetric, scale_dtype=torch.float16).dequantize() / scale
    direct = ((x.double() @ (rounded.double() - weight.double()).T) ** 2).sum()
    # float32 arithmetic over K = 64 terms.
    assert awq.output_error([weight], scale, hessian, grid) == pytest.approx(float(direct), rel=1e-4)


def test_quantize_without_clipping_is_round_to_nearest() -> None:
    weight, _, _ = _problem()
    for symmetric in (True, False):
        ours = awq.quantize(weight, awq.Grid(4, 32, symmetric, torch.float16))
        other = quantize_int(weight, 4, 32, symmetric=symmetric, scale_dtype=torch.float16)
        assert torch.equal(ours.codes, other.codes)
        assert torch.equal(ours.scales, other.scales)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_scales_and_clipping_lower_the_error(bits: int) -> None:
    weight, x, hessian = _problem()
    grid = awq.Grid(bits, 32, False, torch.float16)
    scale = awq.search_scale([weight], hessian, grid)
    scaled, moved = weight * scale, hessian / scale[:, None] / scale[None, :]
    shrink = awq.search_clip(scaled, moved, grid)
    plain = relative_error(weight, awq.quantize(weight, grid).dequantize(), hessian)
    tuned = relative_error(scaled, awq.quantize(scaled, grid, shrink).dequantize(), moved)
    direct = (x @ (awq.quantize(scaled, grid, shrink).dequantize() / scale - weight).T).square().sum()
    assert tuned == pytest.approx(float(direct / (x @ weight.T).square().sum()), rel=1e-3)
    # Channels 12 times as large hold nearly all energy; protecting them pays at once.
    assert tuned < 0.6 * plain


def test_search_never_loses_to_no_scale() -> None:
    weight, _, _ = _problem()
    hessian = torch.eye(64)
    grid = awq.Grid(8, 64, True, torch.float16)
    best = awq.search_scale([weight], hessian, grid)
    assert awq.output_error([weight], best, hessian, grid) <= awq.output_error([weight], torch.ones(64), hessian, grid)


def test_tied_heads_share_a_scale() -> None:
    scale = tie_heads(torch.rand(4 * 8) + 0.1, 2, 8)
    heads = scale.reshape(2, 2, 8)
    assert torch.equal(heads[:, 0], heads[:, 1])


class _Norm(nn.Module):
    def __init__(self, k: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(k).bfloat16().float() + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.weight


class _Mlp(nn.Module):
    def __init__(self, k: int, m: int) -> None:
        super().__init__()
        self.norm = _Norm(k)
        self.gate_proj, self.up_proj = nn.Linear(k, m), nn.Linear(k, m)
        self.down_proj = nn.Linear(m, k)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        return self.down_proj(torch.nn.functional.silu(self.gate_proj(y)) * self.up_proj(y))


@pytest.mark.parametrize(("names", "producer"), [(["gate_proj", "up_proj"], "norm"), (["down_proj"], "up_proj")])
def test_folding_keeps_the_function(names: list[str], producer: str) -> None:
    torch.manual_seed(0)
    layer, x = _Mlp(32, 48), torch.randn(7, 32)
    holder = nn.Module()
    holder.mlp, holder.norm = layer, layer.norm
    before = layer(x)
    found = find_fold(holder, Group([f"mlp.{n}" for n in names], "mlp.norm" if producer == "norm" else None), 0)
    assert found is not None
    k = layer.get_submodule(names[0]).in_features
    applied = apply_fold(holder, found, torch.rand(k) * 3 + 0.2, torch.bfloat16)
    # Norm weights are rounded to bfloat16, and the linear weights make up for it exactly.
    torch.testing.assert_close(layer(x), before, rtol=1e-4, atol=1e-5)
    if producer == "norm":
        assert torch.equal(layer.norm.weight.bfloat16().float(), layer.norm.weight)
        assert not torch.equal(applied, torch.ones(k))


def test_norms_that_add_one_are_folded_as_such() -> None:
    class GemmaRMSNorm(_Norm):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * (1 + self.weight)

    torch.manual_seed(0)
    layer, x = _Mlp(32, 48), torch.randn(7, 32)
    layer.norm = GemmaRMSNorm(32)
    before = layer(x)
    found = find_fold(layer, Group(["gate_proj", "up_proj"], "norm"), 0)
    apply_fold(layer, found, torch.rand(32) + 0.5, torch.bfloat16)
    torch.testing.assert_close(layer(x), before, rtol=1e-4, atol=1e-5)


def test_unknown_places_are_left_alone() -> None:
    layer = _Mlp(32, 48)
    assert find_fold(layer, Group(["gate_proj"], "down_proj"), 0) is None
    assert find_fold(layer, Group(["up_proj"]), 0) is None
