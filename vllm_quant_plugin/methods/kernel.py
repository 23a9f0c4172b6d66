"""A layer's weight in kernel form: its kernels' tensors as parameters of the layer, and the call.

A weight is one or more pieces along the output, nearly always one; more only when fused parts differ in act-order.
Each piece's tensors are registered on the layer (``weight_packed``, ``weight_packed_scales``, ...), so that vLLM
sees, counts and moves them as parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from vllm_quant_kernels import registry
from vllm_quant_kernels.canonical import CanonicalWeight
from vllm_quant_kernels.env import SettingError
from vllm_quant_kernels.kernel import Kernel, Operation, Packed, Tensors
from vllm_quant_kernels.scheme import WeightScheme
from vllm_quant_kernels.shared_library import LibraryError
from vllm_quant_kernels.torch_device import device_of, dtype_name
from vllm_quant_plugin.errors import BackendError
from vllm_quant_plugin.schemes import StoredScheme


def choose_kernel(
    weight: CanonicalWeight,
    scheme: WeightScheme,
    device: torch.device,
    dtype: torch.dtype,
    operation: Operation = "linear",
) -> Kernel:
    """The kernel that runs ``weight`` on ``device`` with activations of ``dtype``.

    Raises:
        BackendError: an environment variable that decides holds an unknown value.
        NoKernelError: there is no kernel for ``operation``.
    """
    n, k = weight.out_features, weight.in_features
    try:
        found = registry.choose(scheme, n, k, device_of(device), dtype_name(dtype), operation, weight)
    except SettingError as error:
        raise BackendError(str(error), hint=f"unset {error.name}") from error
    return found.kernel


def pack_weight(
    weight: CanonicalWeight,
    scheme: WeightScheme,
    static: dict[str, torch.Tensor],
    device: torch.device,
    dtype: torch.dtype,
) -> Packed:
    """Choose a kernel for ``weight`` and pack for it.

    Args:
        static: ``low``, ``high`` and ``scale`` of a static activation range, or empty.
        device: where the layer runs.
        dtype: the layer's activation dtype.

    Raises:
        BackendError: the kernel's native library cannot be used, or an environment variable holds an unknown value.
    """
    # Kernels of vLLM are built for the default dtype, which vLLM sets to the model's while it loads.
    with default_dtype(dtype):
        kernel = choose_kernel(weight, scheme, device, dtype)
        return _pack(kernel, weight, scheme, static)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """torch's default dtype is ``dtype`` inside."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _pack(kernel: Kernel, weight: CanonicalWeight, scheme: WeightScheme, static: dict[str, torch.Tensor]) -> Packed:
    try:
        return kernel.pack(weight, scheme, static)
    except LibraryError as error:
        raise BackendError(str(error), hint=_LIBRARY_HINTS.get(kernel.device, "run `make`")) from error


_LIBRARY_HINTS = {"cuda": "run `make` with nvcc on PATH, or unset VQP_CUDA_KERNELS"}


class PackedLinear:
    """The packed pieces of one layer, and where their tensors are on it.

    Between ``build`` (while the checkpoint loads) and ``register`` (after it has loaded) the object holds the tensors
    itself.
    """

    def __init__(self, pieces: list[Packed]) -> None:
        self._pieces = pieces
        self._prefix: str | None = None

    @classmethod
    def build(
        cls,
        weights: list[CanonicalWeight],
        scheme: StoredScheme,
        static: dict[str, torch.Tensor],
        device: torch.device,
        dtype: torch.dtype,
    ) -> PackedLinear:
        """Pack ``weights``, the pieces of one layer along the output. Raises as :func:`pack_weight`."""
        return cls([pack_weight(weight, scheme.weight, static, device, dtype) for weight in weights])

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors until they are registered."""
        return sum(piece.nbytes for piece in self._pieces)

    @property
    def out_features(self) -> int:
        return sum(piece.out_features for piece in self._pieces)

    def register(self, layer: torch.nn.Module, prefix: str = "weight_packed") -> None:
        """Move the tensors to parameters of ``layer`` named ``prefix``, ``prefix_scales``, ..."""
        self._prefix = prefix
        for i, piece in enumerate(self._pieces):
            for suffix, tensor in piece.tensors.items():
                parameter = None if tensor is None else torch.nn.Parameter(tensor, requires_grad=False)
                layer.register_parameter(self._name(i, suffix), parameter)
            piece.tensors = dict.fromkeys(piece.tensors)
            if piece.module is not None:
                layer.add_module(self._name(i, "_module"), piece.module)
            piece.kernel.bind(piece, layer)

    def _name(self, index: int, suffix: str) -> str:
        return f"{self._prefix}{suffix}" + (f"_{index}" if index else "")

    def _tensors(self, layer: torch.nn.Module, index: int) -> Tensors:
        if self._prefix is None:
            return self._pieces[index].tensors
        return {suffix: getattr(layer, self._name(index, suffix)) for suffix in self._pieces[index].tensors}

    def __call__(self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """x (..., K) to (..., N) in x's dtype."""
        if len(self._pieces) == 1:
            piece = self._pieces[0]
            return piece.kernel.apply(piece, self._tensors(layer, 0), x, bias)
        outputs, start = [], 0
        for i, piece in enumerate(self._pieces):
            stop = start + piece.out_features
            part = None if bias is None else bias[start:stop]
            outputs.append(piece.kernel.apply(piece, self._tensors(layer, i), x, part))
            start = stop
        return torch.cat(outputs, dim=-1)

    def dequantize(self, layer: torch.nn.Module) -> torch.Tensor:
        """float32 (N, K)."""
        parts = [piece.kernel.dequantize(piece, self._tensors(layer, i)) for i, piece in enumerate(self._pieces)]
        return torch.cat(parts)
