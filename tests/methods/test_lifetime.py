"""What vLLM keeps of a layer for a later reload must not keep the layer: its weights would never be freed."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.model_executor.model_loader.reload.meta import capture_layer_to_meta

from vllm_quant_kernels.scheme import Int
from vllm_quant_plugin.formats.compressed_tensors import INT_QUANTIZED
from vllm_quant_plugin.methods.linear import VqpLinearMethod
from vllm_quant_plugin.methods.moe import VqpMoEMethod
from vllm_quant_plugin.schemes import StoredScheme

SCHEME = StoredScheme(Int(8), -1, storage=INT_QUANTIZED)


def linear() -> Any:
    layer: Any = torch.nn.Module()
    layer.tp_rank, layer.tp_size = 0, 1
    layer.quant_method = VqpLinearMethod(SCHEME, "layer")
    layer.quant_method.create_weights(layer, 16, [8], 16, 8, torch.float32)
    return layer


def experts() -> Any:
    layer: Any = torch.nn.Module()
    moe = SimpleNamespace(has_bias=False, tp_size=1, tp_rank=0, is_act_and_mul=True)
    layer.quant_method = VqpMoEMethod(SCHEME, moe, "experts")
    layer.quant_method.create_weights(layer, 2, 16, 8, torch.float32)
    return layer


@pytest.mark.parametrize("make", [linear, experts])
def test_recorded_placeholders_do_not_keep_their_layer(make: Any) -> None:
    layer = make()
    recorded = capture_layer_to_meta(layer)
    alive = weakref.ref(layer)
    del layer
    gc.collect()
    assert alive() is None
    assert recorded[0]
