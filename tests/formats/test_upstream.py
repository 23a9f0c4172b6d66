"""Our layouts are upstream's: packed by the libraries that own the formats, read by us, and the other way round."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32

from tests.formats.test_round_trip import assert_same, random_weight
from vllm_quant_kernels.canonical import CanonicalWeight
from vllm_quant_kernels.scheme import PER_CHANNEL, Int
from vllm_quant_plugin.formats import get_format
from vllm_quant_plugin.formats.compressed_tensors import INT_QUANTIZED, PACK_QUANTIZED
from vllm_quant_plugin.formats.gptq import GPTQ_V1, GPTQ_V2
from vllm_quant_plugin.schemes import Storage, StoredScheme

N, K = 64, 128


def gptqmodel_layer(weight: CanonicalWeight, bits: int, group: int, *, v1: bool) -> Any:
    """GPTQModel's own module, packed by GPTQModel; zeros converted to v1 by GPTQModel's own function."""
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

    layer = TorchLinear(
        bits=bits,
        group_size=group,
        sym=weight.zeros is None,
        desc_act=weight.g_idx is not None,
        in_features=K,
        out_features=N,
        bias=False,
        pack_dtype=torch.int32,
        register_buffers=True,
    )
    linear = torch.nn.Linear(K, N, bias=False)
    linear.weight.data = weight.dequantize(torch.float32)
    zeros = torch.full_like(weight.scales, 1 << (bits - 1)) if weight.zeros is None else weight.zeros
    layer.pack_original(linear, weight.scales.float(), zeros.float(), weight.group_index())
    if v1:
        convert_gptq_v2_to_v1_format_module(layer, SimpleNamespace(bits=bits, pack_dtype=torch.int32))
    return layer


@pytest.mark.parametrize("v1", [True, False], ids=["v1", "v2"])
@pytest.mark.parametrize("kind", ["sym", "asym", "act-order"])
@pytest.mark.parametrize("group", [PER_CHANNEL, 16, 32, 64])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptqmodel(bits: int, group: int, kind: str, v1: bool) -> None:
    """Random zero points hold 0 as well, which v1's "minus one" borrows for across fields or wraps."""
    scheme = StoredScheme(
        Int(bits),
        group,
        symmetric=kind == "sym",
        act_order=kind == "act-order",
        storage=GPTQ_V1 if v1 else GPTQ_V2,
    )
    weight = random_weight(scheme, N, K, seed=bits, zeros=kind != "sym")
    if weight.zeros is not None:
        weight.zeros[: N // 2] = 0
    layer = gptqmodel_layer(weight, bits, group, v1=v1)
    theirs = {name: getattr(layer, name) for name in ("qweight", "qzeros", "scales", "g_idx")}
    layout = get_format(scheme)
    layout.validate("module", theirs, scheme, N, K)
    assert_same(layout.unpack(theirs, scheme, N, K), weight)
    for name, tensor in layout.pack(weight, scheme).items():
        assert torch.equal(tensor.to(theirs[name].dtype), theirs[name]), name


@pytest.mark.parametrize("group", [PER_CHANNEL, 32, 64])
def test_autoawq(group: int) -> None:
    from awq.modules.linear.gemm import WQLinear_GEMM
    from awq.utils.packing_utils import dequantize_gemm

    scheme = StoredScheme(Int(4), group, symmetric=False, storage=Storage("awq"))
    weight = random_weight(scheme, N, K, seed=7, zeros=True)
    assert weight.zeros is not None
    linear = torch.nn.Linear(K, N, bias=False, dtype=torch.float32)
    linear.weight.data = weight.dequantize(torch.float32)
    theirs = WQLinear_GEMM.from_linear(
        linear,
        4,
        scheme.group_of(K),
        scales=weight.scales.float().t().contiguous(),
        zeros=weight.zeros.float().t().contiguous(),
    )
    tensors = {name: getattr(theirs, name) for name in ("qweight", "qzeros", "scales")}
    layout = get_format(scheme)
    layout.validate("module", tensors, scheme, N, K)
    assert_same(layout.unpack(tensors, scheme, N, K), weight)
    ours = layout.pack(weight, scheme)
    for name, tensor in ours.items():
        assert torch.equal(tensor, tensors[name]), name
    back = dequantize_gemm(ours["qweight"], ours["qzeros"], ours["scales"].float(), 4, scheme.group_of(K))
    assert torch.equal(back.t(), weight.dequantize(torch.float32))


@pytest.mark.parametrize("bits", [4, 8])
def test_awq_words_are_vllms(bits: int) -> None:
    from vllm.model_executor.layers.quantization.utils.quant_utils import awq_pack

    scheme = StoredScheme(Int(bits), 64, symmetric=False, storage=Storage("awq"))
    weight = random_weight(scheme, N, K, seed=bits, zeros=True)
    assert weight.zeros is not None
    ours = get_format(scheme).pack(weight, scheme)
    assert torch.equal(ours["qweight"], awq_pack(weight.codes.t().contiguous().int(), bits, K, N))
    assert torch.equal(ours["qzeros"], awq_pack(weight.zeros.t().contiguous().int(), bits, K // 64, N))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", range(2, 9))
def test_compressed_tensors_packed(bits: int, symmetric: bool) -> None:
    scheme = StoredScheme(Int(bits), 32, symmetric=symmetric, storage=PACK_QUANTIZED)
    weight = random_weight(scheme, N, K, seed=bits, zeros=not symmetric)
    middle = 1 << (bits - 1)
    signed = (weight.codes.int() - middle).to(torch.int8)
    ours = get_format(scheme).pack(weight, scheme)
    theirs = {
        "weight_packed": pack_to_int32(signed, bits),
        "weight_scale": weight.scales,
        "weight_shape": torch.tensor([N, K]),
    }
    if weight.zeros is not None:
        theirs["weight_zero_point"] = pack_to_int32((weight.zeros.int() - middle).to(torch.int8), bits, packed_dim=0)
    get_format(scheme).validate("module", theirs, scheme, N, K)
    assert_same(get_format(scheme).unpack(theirs, scheme, N, K), weight)
    assert set(ours) == set(theirs)
    # Where fields do not fill a word, ours are dense as from compressed-tensors 0.18 on; 0.17 pads.
    for name in theirs if 32 % bits == 0 else ("weight_scale", "weight_shape"):
        assert torch.equal(ours[name], theirs[name]), name
    if 32 % bits == 0:
        assert torch.equal(unpack_from_int32(ours["weight_packed"], bits, torch.Size((N, K))), signed)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("strategy", ["channel", "group", "tensor"])
def test_compressed_tensors_int8(strategy: str, symmetric: bool) -> None:
    """Quantized and dequantized by compressed-tensors' own functions."""
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import dequantize, quantize

    args = QuantizationArgs(
        num_bits=8, symmetric=symmetric, strategy=strategy, group_size=32 if strategy == "group" else None
    )
    group = {"channel": -1, "group": 32, "tensor": 0}[strategy]
    scheme = StoredScheme(Int(8), group, symmetric=symmetric, storage=INT_QUANTIZED)
    generator = torch.Generator().manual_seed(3)
    dense = torch.randn(N, K, generator=generator)
    shape = {"channel": (N, 1), "group": (N, K // 32), "tensor": (1,)}[strategy]
    scale = torch.rand(shape, generator=generator) * 0.01 + 0.02
    points = torch.randint(-20, 20, shape, generator=generator, dtype=torch.int8)
    zero = None if symmetric else points
    stored = quantize(dense, scale, zero, args, dtype=torch.int8)
    tensors = {"weight": stored, "weight_scale": scale}
    if zero is not None:
        tensors["weight_zero_point"] = zero
    layout = get_format(scheme)
    layout.validate("module", tensors, scheme, N, K)
    wanted = dequantize(stored, scale, zero, args)
    # Both multiply an integer by a float32 scale: the same product, rounded once.
    assert torch.equal(layout.unpack(tensors, scheme, N, K).dequantize(), wanted.float())
