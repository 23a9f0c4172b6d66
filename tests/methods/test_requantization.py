"""Layers that vLLM 0.33 quantizes again: it creates our weights, marks them, loads them, and asks for the weight.

The order of calls is that of ``OnlineRequantizationMixin`` and its users in vLLM 0.33 (layers/quantization/online);
``process_weights_after_loading`` of our method is not among them.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.kernels.weights import random_weight
from vllm_quant_kernels.scheme import Int
from vllm_quant_plugin.errors import CheckpointError
from vllm_quant_plugin.formats import get_format
from vllm_quant_plugin.formats.gptq import GPTQ_V2
from vllm_quant_plugin.methods.linear import VqpLinearMethod
from vllm_quant_plugin.methods.moe import VqpMoEMethod
from vllm_quant_plugin.schemes import StoredScheme

N, K, BF16 = 96, 128, torch.bfloat16
SCHEME = StoredScheme(Int(3), 32, symmetric=False, storage=GPTQ_V2)


def source(method: Any, layer: Any, *sizes: Any) -> dict[str, torch.nn.Parameter]:
    """``create_requantization_source_weights``: the parameters of our method, marked."""
    before = set(layer._parameters)
    method.create_weights(layer, *sizes)
    made = {name: parameter for name, parameter in layer._parameters.items() if name not in before}
    for parameter in made.values():
        parameter.requantization_source = True
    return made


def release(layer: Any, made: dict[str, torch.nn.Parameter]) -> None:
    """``release_requantization_source_weights``."""
    for name, parameter in made.items():
        if layer._parameters.get(name) is parameter:
            delattr(layer, name)


@pytest.mark.parametrize("order", ["none", "shuffled"])
def test_a_linear_layer(order: str) -> None:
    weight = random_weight(N, K, 3, 32, "integer", order=order, scale_dtype=torch.float16)
    scheme = StoredScheme(Int(3), 32, symmetric=False, act_order=order != "none", storage=GPTQ_V2)
    method, layer = VqpLinearMethod(scheme, "layer"), torch.nn.Module()
    layer.tp_rank, layer.tp_size = 0, 1
    made = source(method, layer, K, [N], K, N, BF16)
    for leaf, tensor in get_format(scheme).pack(weight, scheme).items():
        made[leaf].weight_loader(made[leaf], tensor)
    found = method.dequantize_weight(layer)
    assert found.dtype == BF16
    assert torch.equal(found, weight.dequantize().to(BF16))
    release(layer, made)
    assert not dict(layer.named_parameters()), "nothing of the checkpoint stays"


def test_a_layer_that_is_not_quantized_again_is_packed() -> None:
    weight = random_weight(N, K, 3, 32, "integer", scale_dtype=torch.float16)
    method, layer = VqpLinearMethod(SCHEME, "layer"), torch.nn.Module()
    layer.tp_rank, layer.tp_size = 0, 1
    method.create_weights(layer, K, [N], K, N, BF16)
    for leaf, tensor in get_format(SCHEME).pack(weight, SCHEME).items():
        parameter = getattr(layer, leaf)
        parameter.weight_loader(parameter, tensor)
    method.process_weights_after_loading(layer)
    assert torch.equal(method.dequantize_weight(layer), weight.dequantize().to(BF16))
    assert {name for name, _ in layer.named_parameters()} >= {"weight_packed"}


def test_experts() -> None:
    moe = SimpleNamespace(has_bias=False, tp_size=1, tp_rank=0, is_act_and_mul=True)
    method, layer = VqpMoEMethod(SCHEME, moe, "experts"), torch.nn.Module()
    layer._map_global_expert_id_to_local_expert_id = lambda e: e
    experts, inner = 2, 64
    made = source(method, layer, experts, K, inner, BF16)
    exact: dict[str, list[torch.Tensor]] = {"w1": [], "w3": [], "w2": []}
    for e in range(experts):
        for shard in exact:
            n, k = (K, inner) if shard == "w2" else (inner, K)
            weight = random_weight(n, k, 3, 32, "integer", scale_dtype=torch.float16, seed=10 * e + int(shard[1]))
            exact[shard].append(weight.dequantize().to(BF16))
            for leaf, tensor in get_format(SCHEME).pack(weight, SCHEME).items():
                name = f"{'w2' if shard == 'w2' else 'w13'}_{leaf}"
                made[name].weight_loader(made[name], tensor, name, shard, e)
    w13, w2 = method.dequantize_weight(layer)
    assert torch.equal(w13, torch.cat([torch.stack(exact["w1"]), torch.stack(exact["w3"])], dim=1))
    assert torch.equal(w2, torch.stack(exact["w2"]))
    release(layer, made)
    assert not dict(layer.named_parameters())
    with pytest.raises(CheckpointError, match="packed already"):
        method.dequantize_weight(layer)
