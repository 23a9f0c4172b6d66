"""Layers with 8-bit activations on a GPU, as far as a machine without one can tell: the choice, and the data flow
through the operators' CPU implementations."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.kernels.weights import random_weight
from vllm_quant_kernels.canonical import CanonicalWeight
from vllm_quant_kernels.cuda.w8a8 import activation
from vllm_quant_kernels.cuda.w8a8 import native as w8a8_native
from vllm_quant_kernels.kernel import Packed
from vllm_quant_kernels.scheme import E4M3, ActivationScheme, Int
from vllm_quant_plugin.errors import BackendError
from vllm_quant_plugin.formats import get_format
from vllm_quant_plugin.formats.compressed_tensors import INT_QUANTIZED
from vllm_quant_plugin.methods.kernel import PackedLinear, pack_weight
from vllm_quant_plugin.online import online_scheme
from vllm_quant_plugin.schemes import Storage, StoredScheme

GPU = torch.device("cuda")
INT8 = StoredScheme(Int(8), -1, activation=ActivationScheme(Int(8)), storage=INT_QUANTIZED)
FP8 = StoredScheme(E4M3, 0, activation=ActivationScheme(E4M3), storage=Storage("fp8"))
BLOCK_ACT = ActivationScheme(E4M3, strategy="group", group_size=128)
BLOCKS = StoredScheme(E4M3, 128, block=(128, 128), activation=BLOCK_ACT, storage=Storage("fp8"))


def int8_weight(n: int = 40, k: int = 96, seed: int = 0) -> CanonicalWeight:
    return random_weight(n, k, 8, None, scale_dtype=torch.float32, seed=seed)


def fp8_weight(n: int = 40, k: int = 96) -> CanonicalWeight:
    return random_weight(n, k, 8, None, kind="fp8_e4m3")


def block_weight(n: int = 200, k: int = 256) -> CanonicalWeight:
    w = random_weight(n, k, 8, 128, kind="fp8_e4m3")
    return CanonicalWeight(w.codes, w.scales[::128].repeat_interleave(128, 0)[:n].contiguous(), 8, 128, None, w.kind)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The switch on, the library there, and a GPU with FP8 tensor cores; nothing is launched."""
    monkeypatch.setenv("VQP_CUDA_KERNELS", "1")
    monkeypatch.setattr(w8a8_native, "library", lambda: None)
    monkeypatch.setattr("vllm_quant_kernels.cuda.library.load", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    return monkeypatch


def built(
    weight: CanonicalWeight,
    scheme: StoredScheme,
    static: dict[str, torch.Tensor] | None = None,
    device: torch.device = GPU,
) -> Packed:
    return pack_weight(weight, scheme.weight, static or {}, device, torch.bfloat16)


def promotes(packed: Packed) -> bool:
    """Whether FP8 sums are added in FP32."""
    return bool(packed.args[1])


def test_what_runs_with_eight_bit_activations(gpu: pytest.MonkeyPatch) -> None:
    for weight, scheme in ((int8_weight(), INT8), (fp8_weight(), FP8), (block_weight(), BLOCKS)):
        assert built(weight, scheme).kernel.name == "cuda-w8a8"
    without = StoredScheme(E4M3, 0, storage=Storage("fp8"))
    grouped = random_weight(40, 256, 8, 32)
    tokens = StoredScheme(E4M3, 128, block=(128, 128), activation=ActivationScheme(E4M3), storage=Storage("fp8"))
    for weight, scheme in ((fp8_weight(), without), (grouped, INT8), (block_weight(), tokens)):
        assert built(weight, scheme).kernel.name == "cuda-wna16"


def test_without_the_switch_layers_are_dequantized(gpu: pytest.MonkeyPatch) -> None:
    gpu.delenv("VQP_CUDA_KERNELS")
    assert built(int8_weight(), INT8).kernel.name == "dequantize"


@pytest.mark.parametrize("capability", [(8, 0), (8, 6)])
def test_fp8_without_tensor_cores_for_it_keeps_16_bit_activations(
    gpu: pytest.MonkeyPatch, capability: tuple[int, int]
) -> None:
    gpu.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    for weight, scheme in ((fp8_weight(), FP8), (block_weight(), BLOCKS)):
        packed = built(weight, scheme)
        assert packed.kernel.name == "cuda-wna16"
        assert packed.args[0] == 9
    assert built(int8_weight(), INT8).kernel.name == "cuda-w8a8"


def test_fp8_with_16_bit_activations_is_an_option(gpu: pytest.MonkeyPatch) -> None:
    gpu.setenv("VQP_CUDA_FP8", "w8a16")
    assert built(fp8_weight(), FP8).kernel.name == "cuda-wna16"
    gpu.setenv("VQP_CUDA_FP8", "w8a8")
    assert promotes(built(fp8_weight(), FP8))
    gpu.setenv("VQP_CUDA_FP8_FAST", "1")
    assert not promotes(built(fp8_weight(), FP8))
    gpu.setenv("VQP_CUDA_FP8", "both")
    with pytest.raises(BackendError, match="w8a8 or w8a16"):
        built(fp8_weight(), FP8)


@pytest.mark.parametrize("case", ["int8", "int8-asymmetric", "int8-static", "fp8", "fp8-static", "fp8-blocks"])
def test_a_layer_computes_the_reference(gpu: pytest.MonkeyPatch, case: str) -> None:
    kind = "int" if case.startswith("int8") else "fp8_e4m3"
    static = {"low": torch.tensor(-3.0), "high": torch.tensor(2.9), "scale": torch.tensor(0.025)}
    act = ActivationScheme(
        Int(8) if kind == "int" else E4M3,
        dynamic=not case.endswith("static"),
        symmetric=not case.endswith("asymmetric"),
    )
    scheme = BLOCKS if case == "fp8-blocks" else StoredScheme(act.value, -1, activation=act, storage=INT_QUANTIZED)  # type: ignore[arg-type]
    weight = {"int": int8_weight(), "fp8_e4m3": fp8_weight()}[kind] if case != "fp8-blocks" else block_weight()
    linear, layer = PackedLinear([built(weight, scheme, static)]), torch.nn.Module()
    linear.register(layer)
    k, n = weight.in_features, weight.out_features
    x, bias = torch.randn(7, k, dtype=torch.bfloat16), torch.randn(n, dtype=torch.bfloat16)
    y = linear(layer, x, bias)
    a = activation.quantize(
        x, activation.KINDS[kind], act.symmetric, static["scale"].reshape(1) if not act.dynamic else None,
        None, 128 if case == "fp8-blocks" else 0,
    )  # fmt: skip
    expected = activation.dequantize(a, k) @ weight.dequantize(torch.float64).T + bias.double()
    assert ((y.double() - expected).abs() <= 2.0**-8 * expected.abs() + 1e-4 * expected.abs().max()).all()
    assert torch.equal(linear.dequantize(layer), weight.dequantize(torch.float32))
    compiled = torch.compile(lambda x: linear(layer, x, bias), fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), y)


def test_static_int8_is_the_cpu_layer(gpu: pytest.MonkeyPatch) -> None:
    """The same layer on both devices: with a static scale the codes, and so the results, are equal bits."""
    static = {"low": torch.tensor(-3.2), "high": torch.tensor(3.175), "scale": torch.tensor(0.025)}
    scheme = StoredScheme(Int(8), -1, activation=ActivationScheme(Int(8), dynamic=False), storage=INT_QUANTIZED)
    x, results = torch.randn(5, 96, dtype=torch.bfloat16), []
    for device in (GPU, torch.device("cpu")):
        packed = built(int8_weight(), scheme, static, device)
        assert packed.kernel.name == f"{device.type}-w8a8"
        layer, linear = torch.nn.Module(), PackedLinear([packed])
        linear.register(layer)
        results.append(linear(layer, x))
    assert torch.equal(*results)


@pytest.mark.parametrize("name", ["int8", "fp8", "fp8-blocks", "fp8-16-bit"])
def test_online_weights_end_in_the_kernel(gpu: pytest.MonkeyPatch, name: str) -> None:
    """From a 16-bit weight through the online scheme of `--quantization vqp_int8` and `vqp_fp8`."""
    options: dict[str, Any] = {}
    if name == "fp8-blocks":
        options["weight_block_size"] = [128, 128]
    if name == "fp8-16-bit":
        options["activations"] = "none"
    scheme = online_scheme("vqp_int8" if name == "int8" else "vqp_fp8", options).default
    assert scheme is not None
    weight = torch.randn(200, 256, dtype=torch.bfloat16)
    canonical = get_format(scheme).unpack({"weight": weight}, scheme, 200, 256)
    packed = built(canonical, scheme)
    assert packed.kernel.name == ("cuda-wna16" if name == "fp8-16-bit" else "cuda-w8a8")
    if name == "fp8-blocks":
        scales = packed.tensors["_scales"]
        assert scales is not None
        assert scales.shape == (2, 2)
    layer, linear = torch.nn.Module(), PackedLinear([packed])
    kept = linear.nbytes
    assert kept <= 1.06 * weight.numel()
    linear.register(layer)
    error = (linear.dequantize(layer) - weight.float()).norm() / weight.float().norm()
    assert error < (0.012 if name == "int8" else 0.04)
    x = torch.randn(3, 256, dtype=torch.bfloat16)
    exact = x.double() @ weight.double().T
    assert (linear(layer, x).double() - exact).norm() / exact.norm() < (0.02 if name == "int8" else 0.06)


def test_an_unknown_activation_option_is_refused() -> None:
    with pytest.raises(Exception, match="activations 'static' is not known"):
        online_scheme("vqp_fp8", {"activations": "static"})


def test_the_library_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VQP_CUDA_LIBRARY", "/nowhere/libvqp_cuda.so")
    from vllm_quant_kernels.cuda import library as cuda_library
    from vllm_quant_kernels.cuda.w8a8 import quantize as cuda_quantize

    for function in (cuda_library.load, cuda_quantize.library, w8a8_native.library):
        function.cache_clear()
    monkeypatch.setenv("VQP_CUDA_KERNELS", "1")
    with pytest.raises(BackendError, match="cannot be loaded"):
        built(int8_weight(), INT8)
    cuda_library.load.cache_clear()
