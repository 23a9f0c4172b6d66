"""What a kernel is: whether it can run a weight, how many bytes it keeps, how it packs and computes. No torch.

Planner, ``inspect``, metrics and ``bench`` ask a kernel for its label, its reasons and its bytes without torch; a
layer packs its weight with it and calls it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from vllm_quant_kernels.scheme import WeightScheme

if TYPE_CHECKING:
    import torch

    from vllm_quant_kernels.canonical import CanonicalWeight

Tensors = dict[str, "torch.Tensor | None"]
# What a kernel computes: y = x W^T of one layer, or the grouped form over the experts of a mixture.
Operation = Literal["linear", "experts"]
# How a kernel is known to be right: its tests ran it on such a device, or nothing has run it there yet.
Proof = Literal["tested", "unproven"]


@dataclass(frozen=True)
class Device:
    """Where a layer runs.

    Attributes:
        type: ``cpu``, ``cuda``, or another type of torch device.
        capability: compute capability of a GPU; None where it is not known, which no kernel takes as a reason.
        features: of a CPU, e.g. the instruction sets.
    """

    type: str
    capability: tuple[int, int] | None = None
    features: frozenset[str] = frozenset()


@dataclass
class Packed:
    """A weight as its kernel keeps it.

    Attributes:
        tensors: by suffix, the main one without any. A layer registers them as parameters and hands them back to
            ``Kernel.apply``; they are then None here.
        out_features: N.
        args: sizes and flags that the kernel needs beside the tensors.
        module: of a kernel that keeps parameters of its own in a torch module; a layer registers it as a submodule.
    """

    kernel: Kernel
    tensors: Tensors
    out_features: int
    args: Any
    module: torch.nn.Module | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        own = [] if self.module is None else list(self.module.parameters())
        return sum(t.nbytes for t in (*self.tensors.values(), *own) if t is not None)


class Kernel(ABC):
    """One way to compute a quantized linear layer.

    Attributes:
        name: identifies the kernel.
        device: the type of device that it runs on; "" for any.
        priority: the greatest among the kernels that can run a weight is chosen.
        operation: what it computes.
        proof: how it is known to be right.
    """

    name: str
    device: str
    priority: int
    operation: Operation = "linear"
    proof: Proof = "tested"

    def label(self, scheme: WeightScheme) -> str:
        """What ``inspect`` and metrics call it for a weight of ``scheme``, e.g. ``vqp W4A16``."""
        return self.name

    def label_on(self, scheme: WeightScheme, n: int, k: int, device: Device, dtype: str = "bfloat16") -> str:
        """``label`` for a weight (N, K) on ``device``, for a kernel that knows more there."""
        return self.label(scheme)

    @abstractmethod
    def can_run(self, scheme: WeightScheme, n: int, k: int, device: Device, dtype: str = "bfloat16") -> str | None:
        """None where the kernel can run a weight (N, K) of ``scheme``, else the reason why not.

        Args:
            dtype: of the activations: ``bfloat16``, ``float16`` or ``float32``.
        """

    def refuses(self, weight: CanonicalWeight) -> str | None:
        """Why a weight whose scheme ``can_run`` accepts cannot be packed after all; None where it can.

        Of what the scheme does not tell: e.g. a shard whose block scales begin within a block.
        """
        return None

    @abstractmethod
    def packed_bytes(self, scheme: WeightScheme, n: int, k: int, full_k: int | None = None, itemsize: int = 2) -> int:
        """Bytes of all tensors that ``pack`` makes of a weight (N, K).

        Exact, with two exceptions: a table whose values allow it may be packed narrower, and a row-parallel shard of
        an act-order weight pads each group's run of columns by a number that depends on its ``g_idx``.

        Args:
            full_k: K of the whole matrix, of which this is a row-parallel shard.
            itemsize: bytes of a scale whose dtype the scheme leaves open.
        """

    @abstractmethod
    def pack(
        self, weight: CanonicalWeight, scheme: WeightScheme, static: Mapping[str, torch.Tensor] | None = None
    ) -> Packed:
        """The weight in the kernel's layout, on the device where it will run.

        Args:
            static: ``low``, ``high`` and ``scale`` of a static activation range.

        Raises:
            ValueError: the weight is malformed or holds NaN or infinity.
            LibraryError: the kernel's native library is absent or of another version.
        """

    def bind(self, packed: Packed, layer: torch.nn.Module) -> None:  # noqa: B027  (few kernels need it)
        """Called once, when the tensors have become parameters of ``layer``: for a kernel that needs the layer."""

    @abstractmethod
    def apply(self, packed: Packed, tensors: Tensors, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x (..., K) to (..., N) in x's dtype."""

    @abstractmethod
    def dequantize(self, packed: Packed, tensors: Tensors) -> torch.Tensor:
        """float32 (N, K)."""
