"""The kernels that there are, and which of them runs a given weight. No torch.

    kernel = choose(scheme, n, k, Device("cpu")).kernel
    packed = kernel.pack(weight, scheme)              torch from here on
    y = kernel.apply(packed, packed.tensors, x, bias)

``register`` adds a kernel, and so does an entry point of the group ``vllm_quant_kernels.kernels`` that leads to one.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from vllm_quant_kernels.cpu.kernels import CpuW8A8, CpuWeightOnly
from vllm_quant_kernels.cuda.kernels import CudaExperts, CudaW8A8, CudaWeightOnly
from vllm_quant_kernels.dequantizing import Dequantizing
from vllm_quant_kernels.kernel import Device, Kernel, Operation
from vllm_quant_kernels.scheme import WeightScheme

if TYPE_CHECKING:
    from vllm_quant_kernels.canonical import CanonicalWeight

ENTRY_POINTS = "vllm_quant_kernels.kernels"


@dataclass(frozen=True)
class Choice:
    """The kernel that runs a weight.

    Attributes:
        reasons: of the kernels with a greater priority, by name, why they cannot.
    """

    kernel: Kernel
    reasons: dict[str, str] = field(default_factory=dict)


class NoKernelError(ValueError):
    """No kernel can run a weight."""


_REGISTERED: dict[str, Kernel] = {}


def register(kernel: Kernel) -> None:
    """Add a kernel. Raises ValueError where another kernel has its name."""
    present = _REGISTERED.setdefault(kernel.name, kernel)
    if present is not kernel:
        raise ValueError(f"a kernel named {kernel.name!r} is registered already")


def unregister(name: str) -> None:
    """Remove a kernel that ``register`` added. Raises KeyError where there is none."""
    del _REGISTERED[name]


for _kernel in (CpuWeightOnly(), CpuW8A8(), CudaWeightOnly(), CudaW8A8(), CudaExperts(), Dequantizing()):
    register(_kernel)


@functools.cache
def _load() -> None:
    """Register the kernels of installed packages."""
    for point in entry_points(group=ENTRY_POINTS):
        register(point.load())


def kernels(device: Device | None = None, operation: Operation = "linear") -> list[Kernel]:
    """The kernels of an operation for ``device`` (None: all), by descending priority."""
    _load()
    found = [kernel for kernel in _REGISTERED.values() if kernel.operation == operation]
    if device is not None:
        found = [kernel for kernel in found if kernel.device in ("", device.type)]
    return sorted(found, key=lambda kernel: -kernel.priority)


def choose(
    scheme: WeightScheme,
    n: int,
    k: int,
    device: Device,
    dtype: str = "bfloat16",
    operation: Operation = "linear",
    weight: CanonicalWeight | None = None,
) -> Choice:
    """The kernel with the greatest priority that can run a weight (N, K) of ``scheme`` on ``device``.

    Args:
        weight: the weight itself, where it is at hand: a kernel may refuse it.

    Raises:
        NoKernelError: none can; the message has each one's reason.
        SettingError: an environment variable that decides holds an unknown value.
    """
    reasons: dict[str, str] = {}
    for kernel in kernels(device, operation):
        reason = kernel.can_run(scheme, n, k, device, dtype)
        if reason is None and weight is not None:
            reason = kernel.refuses(weight)
        if reason is None:
            return Choice(kernel, reasons)
        reasons[kernel.name] = reason
    listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    raise NoKernelError(f"no kernel runs {scheme.describe()} of {n} x {k} on {device.type} ({listed or 'none exists'})")
