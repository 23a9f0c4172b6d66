"""Which of vLLM's kernels a form will run on, and the bytes that it keeps there. No torch, no vLLM.

vLLM decides when a layer is built (``vllm/model_executor/kernels/linear`` of 0.32 and 0.33). For planner and
``inspect``, which have neither a GPU nor torch, these are its rules; a test compares both for every capability.
"""

from __future__ import annotations

import functools
import math
from importlib.util import find_spec
from pathlib import Path

from vllm_quant_kernels.kernel import Device
from vllm_quant_kernels.scheme import PER_CHANNEL
from vllm_quant_kernels.sizes import round_up
from vllm_quant_plugin.adapter.forms import Form

MARLIN_GROUPS = (PER_CHANNEL, 32, 64, 128)
MACHETE_GROUPS = (PER_CHANNEL, 64, 128)
HOPPER = (9, 0)
# Of a GPU that nobody named.
USUAL = (8, 0)


@functools.cache
def has_humming() -> bool:
    """Whether Humming can be counted on: it is installed, or no vLLM for CUDA is that could lack it.

    vLLM 0.33 depends on it; 0.32 runs without. Nothing is imported to find out.
    """
    if find_spec("humming") is not None:
        return True
    vllm = find_spec("vllm")
    folders = list(vllm.submodule_search_locations or ()) if vllm is not None else []
    return not any(any(Path(folder).glob("_C_stable*")) for folder in folders)


def integer_kernel(form: Form, n: int, k: int, device: Device, dtype: str, humming: bool) -> str | None:
    """The kernel that vLLM chooses for an integer weight of N x K (padded) in ``form``; None where it has none."""
    capability = device.capability or USUAL
    if capability < (7, 5) or dtype not in ("bfloat16", "float16"):
        return None
    common = form.bits in (4, 8)
    if capability == HOPPER and common and form.group in MACHETE_GROUPS and k % 64 == 0 and n % 128 == 0:
        return "Machete"
    if humming and (capability == HOPPER or form.group == 16):
        return "Humming"
    if common and form.group in MARLIN_GROUPS and not (form.zeros and form.bits == 8):
        return "Marlin"
    return "Humming" if humming else None


def integer_bytes(form: Form, kernel: str, n: int, k: int, gathered: bool) -> int:
    """Bytes of a weight with N rows and K columns (padded by the adapter) as ``kernel`` keeps it."""
    rows, columns = n, k
    if kernel == "Marlin":
        rows, columns = marlin_size(n, k, form.group)
    elif kernel == "Humming":
        rows, columns = round_up(n, 256), round_up(k, math.lcm(128, max(form.group, 1)))
    groups = 1 if form.group == PER_CHANNEL else columns // form.group
    zeros = 0.0
    if form.zeros:
        zeros = {"Machete": 2.0, "Humming": 0.5 if form.bits <= 4 else 1.0}.get(kernel, form.bits / 8)
    own_groups = 1 if form.group == PER_CHANNEL else k // form.group
    offsets = 2 * n * own_groups if form.offset else 0
    return rows * columns * form.bits // 8 + int(rows * groups * (2 + zeros)) + (4 * k if gathered else 0) + offsets


def marlin_size(n: int, k: int, group: int) -> tuple[int, int]:
    """(N, K) padded to the smaller of Marlin's two shapes of tile, whole groups inside."""
    step = max(group, 1)
    sizes = [(round_up(n, a), round_up(k, math.lcm(b, step))) for a, b in ((64, 128), (128, 64))]
    return min(sizes, key=lambda size: (size[0] * size[1], size[0] + size[1]))


def float_kernel(block: bool, eight_bit: bool, device: Device, humming: bool) -> str:
    """The kernel that vLLM chooses for an FP8 weight, with FP8 activations (``eight_bit``) or without.

    Of several that the installation decides between (FlashInfer, DeepGEMM), it is the one that vLLM itself has.
    """
    capability = device.capability or USUAL
    if not eight_bit:
        return "Humming FP8" if humming else "Marlin FP8"
    if not block:
        return "CUTLASS FP8"
    if capability < HOPPER:
        return "Marlin FP8"
    return "DeepGEMM" if capability < (12, 0) else "CUTLASS FP8 blocks"
