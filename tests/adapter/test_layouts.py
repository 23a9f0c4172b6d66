"""The same checkpoint through vLLM's own loader and through ours: vLLM's kernel gets the same tensors, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from vllm.model_executor.layers.quantization.auto_awq import AutoAWQConfig, AutoAWQMarlinLinearMethod
from vllm.model_executor.layers.quantization.auto_gptq import AutoGPTQConfig, AutoGPTQLinearMethod
from vllm.model_executor.layers.quantization.compressed_tensors.schemes.compressed_tensors_wNa16 import (
    CompressedTensorsWNA16,
)

from tests.kernels.weights import random_weight
from tests.support.fake_cuda import INTEGER_KERNELS, captured, fake_cuda
from vllm_quant_kernels.canonical import CanonicalWeight
from vllm_quant_kernels.scheme import Int
from vllm_quant_plugin.adapter.linear import build_integers
from vllm_quant_plugin.formats import get_format
from vllm_quant_plugin.formats.compressed_tensors import PACK_QUANTIZED
from vllm_quant_plugin.formats.gptq import GPTQ_V1
from vllm_quant_plugin.schemes import Storage, StoredScheme

N, K = 256, 512
Seen = list[tuple[str, dict[str, torch.Tensor]]]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """What each kernel got: (its class, its parameters in one orientation)."""
    found: Seen = []

    def process(self: Any, layer: Any) -> None:
        found.append((type(self).__name__, captured(self, layer)))

    for kernel in INTEGER_KERNELS:
        monkeypatch.setattr(kernel, "process_weights_after_loading", process)
    return found


def load(method: Any, tensors: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    """A layer of vLLM's ``method`` with the checkpoint's tensors, as after loading."""
    layer = torch.nn.Module()
    method.create_weights(
        layer=layer, input_size_per_partition=K, output_partition_sizes=[N], input_size=K, output_size=N,
        params_dtype=dtype, weight_loader=lambda *_: None,
    )  # fmt: skip
    for name, tensor in tensors.items():
        if hasattr(layer, name):
            getattr(layer, name).data.copy_(tensor)
    method.process_weights_after_loading(layer)


def compare(method: Any, weight: CanonicalWeight, scheme: StoredScheme, seen: Seen, dtype: torch.dtype) -> None:
    tensors = get_format(scheme).pack(weight, scheme)
    load(method, tensors, dtype)
    build_integers(get_format(scheme).unpack(tensors, scheme, N, K), dtype)
    (theirs, expected), (ours, found) = seen
    assert ours == theirs
    assert set(found) == set(expected)
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0), (10, 0)])
@pytest.mark.parametrize(("bits", "group"), [(4, 128), (4, 64), (4, 32), (4, -1), (8, 128), (8, -1)])
def test_gptq(bits: int, group: int, capability: tuple[int, int], seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda(monkeypatch, capability)
    weight = random_weight(N, K, bits, None if group == -1 else group, scale_dtype=torch.float16)
    config = AutoGPTQConfig.from_config({"bits": bits, "group_size": group, "desc_act": False, "sym": True})
    scheme = StoredScheme(Int(bits), group, storage=GPTQ_V1)
    compare(AutoGPTQLinearMethod(config), weight, scheme, seen, torch.float16)


@pytest.mark.parametrize("capability", [(8, 0), (9, 0), (10, 0)])
@pytest.mark.parametrize("group", [128, 64, 32, -1])
def test_awq(group: int, capability: tuple[int, int], seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda(monkeypatch, capability)
    weight = random_weight(N, K, 4, None if group == -1 else group, "integer", scale_dtype=torch.float16)
    config = AutoAWQConfig.from_config({"bits": 4, "group_size": group, "zero_point": True})
    scheme = StoredScheme(Int(4), group, symmetric=False, storage=Storage("awq"))
    compare(AutoAWQMarlinLinearMethod(config), weight, scheme, seen, torch.float16)


class Scheme:
    """A compressed-tensors scheme as its linear method calls it."""

    def __init__(self, scheme: CompressedTensorsWNA16) -> None:
        self.create_weights = scheme.create_weights
        self.process_weights_after_loading = scheme.process_weights_after_loading


@pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_compressed_tensors(
    bits: int, symmetric: bool, capability: tuple[int, int], seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every width natively, with Humming where no other kernel reads it."""
    fake_cuda(monkeypatch, capability)
    weight = random_weight(N, K, bits, 64, "none" if symmetric else "integer", scale_dtype=torch.bfloat16)
    method = Scheme(CompressedTensorsWNA16("group", bits, 64, symmetric))
    scheme = StoredScheme(Int(bits), 64, symmetric=symmetric, storage=PACK_QUANTIZED)
    compare(method, weight, scheme, seen, torch.bfloat16)
