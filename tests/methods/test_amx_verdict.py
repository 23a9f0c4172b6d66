"""The verdict on FP8 blocks of a CPU with AMX, by asking vLLM's own kernels. No engine, no such CPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from vllm import _custom_ops as ops
from vllm.model_executor.kernels.linear import _POSSIBLE_FP8_BLOCK_KERNELS
from vllm.model_executor.kernels.linear.scaled_mm.ScaledMMLinearKernel import FP8ScaledMMLinearLayerConfig
from vllm.model_executor.layers.quantization.utils.quant_utils import GroupShape, create_fp8_quant_key
from vllm.platforms import PlatformEnum

from tests.support.recipes import fp8
from vllm_quant_plugin.formats import Host, get_format
from vllm_quant_plugin.formats.compressed_tensors import storage

OLD = Host("cpu", frozenset({"avx512f", "avx512_vnni"}))
AMX = Host("cpu", frozenset({"avx512f", "avx512_vnni", "amx_tile", "amx_bf16"}))


def vllm_serves(block: tuple[int, int]) -> bool:
    """Whether one of the kernels that vLLM lists for CPUs takes weights in these blocks, on this process's CPU."""
    config = FP8ScaledMMLinearLayerConfig(
        weight_quant_key=create_fp8_quant_key(static=True, group_shape=GroupShape(*block)),
        activation_quant_key=create_fp8_quant_key(static=False, group_shape=GroupShape(1, block[0])),
        weight_shape=(512, 256),
        input_dtype=torch.bfloat16,
        out_dtype=torch.bfloat16,
    )
    kernels = _POSSIBLE_FP8_BLOCK_KERNELS[PlatformEnum.CPU]
    return any(kernel.is_supported()[0] and kernel.can_implement(config)[0] for kernel in kernels)


@pytest.mark.parametrize("amx", [False, True])
@pytest.mark.parametrize("block", [(128, 128), (64, 128), (32, 128), (48, 128), (128, 64), (1, 128)])
def test_blocks(block: tuple[int, int], amx: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(ops, "_supports_cpu_fp8_w8a16", True)
    scheme = fp8(block=block).scheme
    assert scheme is not None
    for stored in (scheme, replace(scheme, storage=storage("float-quantized"))):
        reason = get_format(stored).refused_in_tree(stored, AMX if amx else OLD, "linear", 512, 256)
        assert (reason is None) == vllm_serves(block), reason


@pytest.mark.parametrize("block", [(128, 128), (64, 128)])
def test_blocks_of_experts(block: tuple[int, int]) -> None:
    from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUExpertsFp8

    keys = (
        create_fp8_quant_key(static=True, group_shape=GroupShape(*block)),
        create_fp8_quant_key(static=False, group_shape=GroupShape(1, 128)),
    )
    scheme = fp8(block=block).scheme
    assert scheme is not None
    reason = get_format(scheme).refused_in_tree(scheme, AMX, "experts", 512, 256)
    assert (reason is None) == CPUExpertsFp8._supports_quant_scheme(*keys)
