"""Problems for the interpreter: one per kernel, small, and with what can go wrong in it: a ring that wraps, clusters,
dependent launches, edges of all tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tests.cuda import emulated, emulated_w8a8, test_kernel, test_w8a8
from tests.cuda.ptx.launches import Device
from tests.kernels.weights import random_weight
from vllm_quant_kernels.cuda.pack import pack_cuda
from vllm_quant_kernels.cuda.w8a8 import activation

HOPPER = emulated.Device(2, 227 << 10, 228 << 10, 1, 1)
SMALL = emulated.Device(64, 99 << 10, 100 << 10, 1)  # four stages, so that the ring wraps soon
Case = Callable[[Device], torch.Tensor]


def wna16(m: int, n: int, k: int, tokens: int, splits: int, **weight) -> Case:  # type: ignore[no-untyped-def]
    w = random_weight(n, k, 4, **weight, seed=3)
    packed, x = pack_cuda(w), test_kernel.activations(m, k, torch.float16, 3)

    def run(device: Device) -> torch.Tensor:
        with device.instead():
            y = emulated.linear(x, packed, None, SMALL if tokens < 128 else HOPPER, tokens, splits)
        test_kernel.check(y, x, w)
        return y

    return run


def w8a8(m: int, n: int, k: int, kind: str, **options) -> Case:  # type: ignore[no-untyped-def]
    w, x = test_w8a8.weight(n, k, kind, 3), test_w8a8.activations(m, k, torch.bfloat16, 3)

    def run(device: Device) -> torch.Tensor:
        with device.instead():
            y, _ = emulated_w8a8.linear(x, w, None, **options)
        test_w8a8.check(y, activation.quantize(x, w.kind, group=128 if w.blocks else 0), w, None)
        return y

    return run


def cases() -> dict[str, Case]:
    """By kernel."""
    return {
        "wna16<Half,4,8,0>": wna16(5, 100, 1400, 8, 2, group_size=64, zeros="integer"),
        "wna16_wide<Half,4,128,0>": wna16(100, 120, 640, 128, 1, group_size=128, zeros="integer"),
        "w8a8<9,8,1,1>": w8a8(3, 120, 1400, "fp8", fused=True, device=SMALL, splits=2),
        "w8a8_wide<9,128,1>": w8a8(
            130, 120, 1100, "fp8-blocks", warpgroups=True, promote=True, channels=128, cluster=2, device=HOPPER
        ),
        "w8a8_wide<8,128,0>": w8a8(130, 120, 1100, "int8", warpgroups=True, channels=128, cluster=1, device=HOPPER),
    }
