"""The switch VQP_CUDA_KERNELS, and the layers behind it, as far as a machine without a GPU can tell."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.kernels.weights import random_weight
from vllm_quant_kernels.cuda import library as cuda_library
from vllm_quant_kernels.cuda.kernels import CudaWeightOnly
from vllm_quant_kernels.cuda.ops import linear_cuda
from vllm_quant_kernels.cuda.pack import pack_cuda
from vllm_quant_kernels.scheme import E5M2, PER_CHANNEL, Int, WeightScheme
from vllm_quant_plugin import compat_kernels
from vllm_quant_plugin.errors import BackendError
from vllm_quant_plugin.formats import Host
from vllm_quant_plugin.methods import mp_kernel
from vllm_quant_plugin.methods.kernel import PackedLinear, choose_kernel, pack_weight

GPU = torch.device("cuda")


BF16 = torch.bfloat16
G32 = WeightScheme(Int(4), 32)


def test_without_the_switch_a_gpu_layer_is_dequantized(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VQP_CUDA_KERNELS", raising=False)
    w = random_weight(32, 64, 4, 32)
    assert pack_weight(w, G32, {}, GPU, BF16).kernel.name == "dequantize"


def test_the_switch_serves_what_the_kernels_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VQP_CUDA_KERNELS", "1")
    w = random_weight(32, 64, 4, 32)
    assert choose_kernel(w, G32, GPU, BF16).name == "cuda-wna16"
    assert choose_kernel(w, G32, GPU, torch.float32).name == "dequantize"
    assert choose_kernel(w, G32, torch.device("xpu"), BF16).name == "dequantize"
    e5m2 = random_weight(32, 64, kind="fp8_e5m2", bits=8)
    assert choose_kernel(e5m2, WeightScheme(E5M2, PER_CHANNEL), GPU, BF16).name == "dequantize"
    monkeypatch.setenv("VQP_CUDA_KERNELS", "yes")
    with pytest.raises(BackendError, match="0 or 1"):
        choose_kernel(w, G32, GPU, BF16)


def test_the_switch_without_the_library_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VQP_CUDA_KERNELS", "1")
    monkeypatch.setenv("VQP_CUDA_LIBRARY", "/nowhere/libvqp_cuda.so")
    cuda_library.load.cache_clear()
    with pytest.raises(BackendError, match=r"cannot be loaded.*unset VQP_CUDA_KERNELS"):
        pack_weight(random_weight(32, 64, 4, 32), G32, {}, GPU, BF16)
    cuda_library.load.cache_clear()


@pytest.mark.parametrize(("order", "places"), [("last", [1, 1]), ("first", [0, 0]), ("off", [])])
@pytest.mark.parametrize("switch", ["0", "1"])
def test_vllms_registry_has_the_cuda_kernel_where_it_is_switched_on(
    switch: str, order: str, places: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For layers of compressed-tensors, which are not ours."""
    cpu, cuda = compat_kernels.PlatformEnum.CPU, compat_kernels.PlatformEnum.CUDA
    lists: dict[Any, list[Any]] = {cpu: ["in-tree"], cuda: ["in-tree"]}
    monkeypatch.setattr(compat_kernels, "_POSSIBLE_KERNELS", lists)
    monkeypatch.setattr(
        compat_kernels, "register_linear_kernel", lambda kernel, platform, _: lists[platform].append(kernel)
    )
    monkeypatch.setenv("VQP_CUDA_KERNELS", switch)
    monkeypatch.setenv("VQP_LINEAR_KERNELS", order)
    set_cpu(monkeypatch, "avx512f")
    for _ in range(2):
        mp_kernel.register_kernel()
    found = {(platform, lists[platform].index(k)) for platform in lists for k in lists[platform] if k != "in-tree"}
    assert found == set(list(zip((cpu, cuda), places, strict=False))[: 1 + int(switch)])


def set_cpu(monkeypatch: pytest.MonkeyPatch, *flags: str) -> None:
    monkeypatch.setattr(mp_kernel.Host, "local", staticmethod(lambda device: Host(device, frozenset(flags))))


def test_the_cpu_kernel_comes_first_where_vllms_own_has_no_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = compat_kernels.PlatformEnum.CPU
    lists: dict[Any, list[Any]] = {cpu: ["in-tree"]}
    monkeypatch.setattr(compat_kernels, "_POSSIBLE_KERNELS", lists)
    monkeypatch.setattr(
        compat_kernels, "register_linear_kernel", lambda kernel, platform, _: lists[platform].append(kernel)
    )
    monkeypatch.setenv("VQP_CUDA_KERNELS", "0")
    set_cpu(monkeypatch, "avx2")
    mp_kernel.register_kernel()
    assert lists[cpu] == [mp_kernel.VqpLinearKernel, "in-tree"]


def test_the_cuda_kernel_of_the_registry_takes_16_bit_activations() -> None:
    def asked(act_type: torch.dtype, group_size: int) -> Any:
        kind = SimpleNamespace(is_floating_point=lambda: False, is_signed=lambda: False, size_bits=4)
        sizes = {"partition_weight_shape": (256, 64), "group_size": group_size}
        return SimpleNamespace(weight_type=kind, act_type=act_type, **sizes)

    kernel = mp_kernel.VqpCudaLinearKernel
    assert kernel.get_min_capability() == 80
    assert kernel.can_implement(asked(torch.bfloat16, 128)) == (True, None)
    assert not kernel.can_implement(asked(torch.float32, 128))[0]
    assert not kernel.can_implement(asked(torch.bfloat16, 96))[0]


@pytest.mark.parametrize("order", ["none", "shuffled"])
def test_a_layer_of_pieces_computes_the_reference(order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operators' CPU implementations read the same packed tensors that the kernels do."""
    weights = [random_weight(n, 192, 4, 32, "integer", order=order, seed=n) for n in (40, 24)]
    monkeypatch.setattr(cuda_library, "load", lambda: None)
    pieces = [CudaWeightOnly().pack(w, G32) for w in weights]
    linear, layer = PackedLinear(pieces), torch.nn.Module()
    linear.register(layer)
    x, bias = torch.randn(3, 192, dtype=torch.bfloat16), torch.randn(64, dtype=torch.bfloat16)
    expected = torch.cat([w.dequantize(torch.float64) for w in weights])
    assert torch.equal(linear.dequantize(layer), expected.float())
    exact = x.double() @ expected.T + bias.double()
    assert ((linear(layer, x, bias).double() - exact).abs() <= 2.0**-8 * exact.abs() + 1e-4).all()


def test_fakes_have_the_shapes_of_the_results() -> None:
    packed = pack_cuda(random_weight(40, 96, 4, 32))
    for shape in ((96,), (5, 96), (2, 3, 96), (0, 96)):
        x = torch.randn(shape, dtype=torch.float16)
        real = linear_cuda(x, packed)
        with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fake = linear_cuda(mode.from_tensor(x), packed)
        assert (fake.shape, fake.dtype) == (real.shape, real.dtype)


def test_operators_refuse_tensors_that_do_not_fit() -> None:
    packed, x = pack_cuda(random_weight(40, 96, 4, 32)), torch.randn(2, 96, dtype=torch.float16)
    with pytest.raises(ValueError, match="bf16 or fp16"):
        linear_cuda(x.float(), packed)
    with pytest.raises(ValueError, match="must be"):
        linear_cuda(x[:, :64], packed)
    with pytest.raises(ValueError, match="bias"):
        linear_cuda(x, packed, torch.zeros(39))
    arguments = (packed.scales, None, None, None, 4, 32, 40, 96, False)
    with pytest.raises(ValueError, match="does not hold"):
        torch.ops.vqp.wna16_linear_cuda(x, packed.data[:-1], *arguments)
    with pytest.raises(ValueError, match="scales must be"):
        torch.ops.vqp.wna16_linear_cuda(x, packed.data, packed.scales[:2], *arguments[1:])
