"""Experts through vLLM's fused-MoE oracle: which kernel it chooses, what it gets, and what that computes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.config import (
    FusedMoEConfig,
    FusedMoEParallelConfig,
    RoutingMethodType,
)

from tests.kernels.weights import random_weight
from tests.support.fake_cuda import fake_cuda
from vllm_quant_kernels.canonical import CanonicalWeight
from vllm_quant_kernels.kernel import Device
from vllm_quant_kernels.scheme import E4M3, PER_CHANNEL, ActivationScheme, Int, WeightScheme
from vllm_quant_kernels.unpack import unpack_dense
from vllm_quant_plugin import compat_experts
from vllm_quant_plugin.adapter.experts import Sizes, take_over
from vllm_quant_plugin.formats import get_format
from vllm_quant_plugin.formats.gptq import GPTQ_V2
from vllm_quant_plugin.methods import moe as methods
from vllm_quant_plugin.schemes import StoredScheme

EXPERTS, HIDDEN, INNER = 3, 256, 128
BF16, CPU = torch.bfloat16, torch.device("cpu")
SIZES = Sizes(EXPERTS, HIDDEN, INNER)
METHODS = [
    compat_experts.CompressedTensorsWNA16MoEMethod, compat_experts.CompressedTensorsW8A8Fp8MoEMethod,
    compat_experts.CompressedTensorsW8A8Int8MoEMethod,
]  # fmt: skip


@pytest.fixture(autouse=True)
def _no_repacking(monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows in vLLM is GPU code."""
    for method in METHODS:
        monkeypatch.setattr(method, "process_weights_after_loading", lambda self, layer: None)


def config() -> FusedMoEConfig:
    return FusedMoEConfig(
        num_experts=EXPERTS, experts_per_token=2, hidden_dim=HIDDEN, intermediate_size=INNER,
        num_local_experts=EXPERTS, num_logical_experts=EXPERTS, activation=MoEActivation.SILU, device="cpu",
        routing_method=RoutingMethodType.Renormalize, in_dtype=BF16,
        moe_parallel_config=FusedMoEParallelConfig.make_no_parallel(),
    )  # fmt: skip


def weights(
    bits: int = 4, group: int | None = 64, zeros: str = "none", **more: Any
) -> dict[tuple[str, int], list[CanonicalWeight]]:
    shapes = {"w13": (2 * INNER, HIDDEN), "w2": (HIDDEN, INNER)}
    return {
        (name, e): [random_weight(*shape, bits, group, zeros, seed=10 * e + len(name), **more)]
        for name, shape in shapes.items()
        for e in range(EXPERTS)
    }


def dense(layer: Any, matrix: str, expert: int, method: Any) -> torch.Tensor:
    """The weight that the tensors in front of the kernel stand for, as the compressed-tensors format says."""
    scale = getattr(layer, f"{matrix}_weight_scale").data[expert].double()
    if not hasattr(layer, f"{matrix}_weight_packed"):
        codes = getattr(layer, f"{matrix}_weight").data[expert].double()
        for dim in (0, 1):
            scale = scale.repeat_interleave(codes.shape[dim] // scale.shape[dim], dim)
        return codes * scale
    bits, packed = method.num_bits, getattr(layer, f"{matrix}_weight_packed").data[expert]
    k = packed.shape[1] * 32 // bits
    codes = unpack_dense(packed, bits, k).double()
    zeros: Any = float(1 << (bits - 1))
    if not method.symmetric:
        words = getattr(layer, f"{matrix}_weight_zero_point").data[expert]
        zeros = unpack_dense(words.t().contiguous(), bits, codes.shape[0]).t().double()
        zeros = zeros.repeat_interleave(k // zeros.shape[1], 1)
    return (codes - zeros) * scale.repeat_interleave(k // scale.shape[1], 1)


def check(found: dict[Any, list[CanonicalWeight]], scheme: WeightScheme) -> Any:
    layer = torch.nn.Module()
    method = take_over(layer, found, scheme, config(), SIZES, BF16)
    if method is not None:
        for (matrix, expert), (weight,) in found.items():
            exact = weight.dequantize(torch.float64)
            assert torch.allclose(dense(layer, matrix, expert, method), exact, rtol=2.0**-8, atol=0)
    return method


@pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("zeros", ["none", "integer"])
def test_integers(bits: int, zeros: str, capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda(monkeypatch, capability)
    method = check(weights(bits, 64, zeros), WeightScheme(Int(bits), 64, symmetric=zeros == "none"))
    if method is None:
        assert (bits, zeros) == (8, "integer"), "zero points of 8 bits have no fused kernel"
        return
    assert type(method).__name__ == "CompressedTensorsWNA16MoEMethod"
    assert method.wna16_backend.name in ("MARLIN", "HUMMING", "TRITON")
    assert method.num_bits in (bits, 4 if bits < 4 else 8)


@pytest.mark.parametrize(("group", "size"), [(32, 32), (128, 128), (None, -1), (16, 16)])
def test_groups(group: int | None, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda(monkeypatch, (8, 0), with_humming=False)
    method = check(weights(4, group), WeightScheme(Int(4), group or PER_CHANNEL))
    assert method.wna16_backend.name == ("TRITON" if group == 16 else "MARLIN")
    assert method.group_size == size


def test_what_no_fused_kernel_takes_stays_per_expert(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda(monkeypatch, (8, 0), with_humming=False)
    assert check(weights(4, 64, order="shuffled"), WeightScheme(act_order=True)) is None
    assert check(weights(4, 64, "floating"), WeightScheme(symmetric=False)) is None
    split = {key: [w.rows(0, 64), w.rows(64, w.out_features)] for key, (w,) in weights().items()}
    assert check(split, WeightScheme()) is None
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "1")
    assert check(weights(), WeightScheme()) is None


def test_int8_and_fp8_with_8_bit_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda(monkeypatch, (9, 0))
    monkeypatch.setattr("vllm.distributed.get_tensor_model_parallel_world_size", lambda: 1)
    for method in METHODS[1:]:
        module = __import__(method.__module__, fromlist=["_"])
        for name in ("select_fp8_moe_backend", "select_int8_moe_backend"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, chosen)
    token = ActivationScheme(Int(8))
    int8 = check(weights(8, None), WeightScheme(Int(8), PER_CHANNEL, activation=token))
    assert type(int8).__name__ == "CompressedTensorsW8A8Int8MoEMethod"
    fp8 = WeightScheme(E4M3, PER_CHANNEL, activation=ActivationScheme(E4M3))
    method = check(weights(8, None, kind="fp8_e4m3"), fp8)
    assert type(method).__name__ == "CompressedTensorsW8A8Fp8MoEMethod"
    assert not method.block_quant
    group = ActivationScheme(E4M3, "group", group_size=128)
    blocks = WeightScheme(E4M3, 128, block=(128, 128), activation=group)
    tiled = {}
    for key, (w,) in weights(8, 128, kind="fp8_e4m3").items():
        scales = w.scales[::128].repeat_interleave(128, 0)
        tiled[key] = [CanonicalWeight(w.codes, scales, 8, 128, kind="fp8_e4m3")]
    assert check(tiled, blocks).block_quant
    assert check(weights(8, None, kind="fp8_e4m3"), WeightScheme(E4M3, PER_CHANNEL)) is None, "16-bit activations"


def chosen(*_: Any, **__: Any) -> tuple[Any, Any]:
    return SimpleNamespace(name="ANY"), object


def test_the_layer_gets_vllms_method(monkeypatch: pytest.MonkeyPatch) -> None:
    """From checkpoint tensors through the loaders: the layer's method is vLLM's own from then on."""
    fake_cuda(monkeypatch, (8, 0))
    monkeypatch.setattr(methods, "on_gpu", lambda device: True)
    monkeypatch.setattr("vllm_quant_plugin.methods.kernel.device_of", lambda device: Device("cuda", (8, 0)))
    scheme = StoredScheme(Int(4), 64, symmetric=False, storage=GPTQ_V2)
    moe = config()
    method, layer = methods.VqpMoEMethod(scheme, moe, "experts"), torch.nn.Module()
    layer._map_global_expert_id_to_local_expert_id = lambda e: e
    method.create_weights(layer, EXPERTS, HIDDEN, INNER, BF16)
    exact = {}
    for e in range(EXPERTS):
        for shard in ("w1", "w3", "w2"):
            matrix, (n, k) = ("w2", (HIDDEN, INNER)) if shard == "w2" else ("w13", (INNER, HIDDEN))
            w = random_weight(n, k, 4, 64, "integer", scale_dtype=torch.float16, seed=10 * e + int(shard[1]))
            exact[e, shard] = w.dequantize(torch.float64)
            for leaf, tensor in get_format(scheme).pack(w, scheme).items():
                parameter = getattr(layer, f"{matrix}_{leaf}")
                parameter.weight_loader(parameter, tensor, f"{matrix}_{leaf}", shard, e)
    method.process_weights_after_loading(layer)
    served = layer.quant_method
    assert isinstance(served, compat_experts.CompressedTensorsWNA16MoEMethod)
    for e in range(EXPERTS):
        both = torch.cat([exact[e, "w1"], exact[e, "w3"]])
        assert torch.allclose(dense(layer, "w13", e, served), both, rtol=2.0**-8)
        assert torch.allclose(dense(layer, "w2", e, served), exact[e, "w2"], rtol=2.0**-8)
    names = {name for name, _ in layer.named_parameters()}
    assert not any("qweight" in name or "_packed_0" in name for name in names)
