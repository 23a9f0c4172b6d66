"""Quantizing while loading, on a GPU: never more memory than the quantized model and two layers in 16 bits.

Goes the way of VqpLinearMethod without vLLM: parts of a layer arrive on the CPU, move to the GPU one by one, are
quantized, stacked and built into the layer's segment.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("safetensors", reason="the plugin's formats need safetensors")

from vllm_quant_kernels.scheme import E4M3, PER_CHANNEL, ActivationScheme, Int
from vllm_quant_kernels.unpack_weight import stack_rows
from vllm_quant_plugin.formats import get_format
from vllm_quant_plugin.methods.kernel import PackedLinear
from vllm_quant_plugin.schemes import StoredScheme

FP8_CORES = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9)
SCHEMES = {
    "int8": StoredScheme(Int(8), PER_CHANNEL, activation=ActivationScheme(Int(8))),
    "int8-w8a16": StoredScheme(Int(8), PER_CHANNEL),
    "fp8": StoredScheme(E4M3, PER_CHANNEL, activation=ActivationScheme(E4M3)),
}
# Rows of the parts that vLLM fuses, and columns: two decoder layers in the shapes of Llama-3-8B.
LAYERS = [([4096, 1024, 1024], 4096), ([4096], 4096), ([14336, 14336], 4096), ([4096], 14336)] * 2


@pytest.mark.parametrize("name", SCHEMES)
def test_peak_is_the_quantized_model_and_two_layers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VQP_CUDA_KERNELS", "1")
    scheme, device = SCHEMES[name], torch.device("cuda")
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    kept: list[torch.nn.Module] = []
    for rows, k in LAYERS:
        pieces = []
        for n in rows:
            part = torch.randn(n, k, dtype=torch.bfloat16)
            pieces.append(get_format(scheme).unpack({"weight": part.to(device)}, scheme, n, k))
        linear, layer = PackedLinear.build([stack_rows(pieces)], scheme, {}, device, torch.bfloat16), torch.nn.Module()
        del pieces
        linear.register(layer)
        y = linear(layer, torch.randn(2, k, dtype=torch.bfloat16, device=device))
        assert bool(torch.isfinite(y).all())
        del y
        kept.append(layer)
    quantized = sum(p.nbytes for layer in kept for p in layer.parameters())
    largest = max(2 * sum(rows) * k for rows, k in LAYERS)
    assert quantized <= 1.05 * sum(sum(rows) * k for rows, k in LAYERS)
    assert torch.cuda.max_memory_allocated() - before <= quantized + 2 * largest
