"""A layer's weight in kernel form: which kernel serves a scheme, its buffers, and the call.

A weight is one or more segments along the output, nearly always one; more only when fused parts
differ in act-order. Each segment's tensors are registered on the layer (``weight_packed``,
``weight_packed_scales``, ...), so that vLLM sees, counts and moves them as parameters.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from vllm_quant_kernels.canonical import FP8_DTYPES, CanonicalWeight
from vllm_quant_kernels.cpu import ops
from vllm_quant_kernels.cpu.pack import pack, pack_int8, unpack, unpack_int8
from vllm_quant_kernels.cpu.weight import PackedInt8, PackedWeight
from vllm_quant_plugin.scheme import Scheme

Tensors = dict[str, torch.Tensor | None]


class Segment(ABC):
    """A run of output features served by one kernel call. Holds no tensors after ``register``."""

    @abstractmethod
    def tensors(self) -> Tensors:
        """The tensors to register, by suffix; the main one has the empty suffix."""

    @abstractmethod
    def without_tensors(self) -> Segment:
        """A copy that keeps the sizes only."""

    @abstractmethod
    def apply(self, tensors: Tensors, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x (..., K) to (..., N)."""

    @abstractmethod
    def dequantize(self, tensors: Tensors) -> torch.Tensor:
        """float32 (N, K)."""

    @property
    @abstractmethod
    def out_features(self) -> int: ...


_NONE = torch.empty(0)


@dataclass(frozen=True)
class PackedSegment(Segment):
    """Weight-only: data, scales, zero points and column permutation in a device's packed layout."""

    packed: Any

    def tensors(self) -> Tensors:
        p = self.packed
        return {"": p.data, "_scales": p.scales, "_zeros": p.zeros, "_perm": p.perm}

    def without_tensors(self) -> Segment:
        return replace(self, packed=replace(self.packed, data=_NONE, scales=_NONE, zeros=None, perm=None))

    def with_tensors(self, tensors: Tensors) -> Any:
        """The packed weight again."""
        data, scales = tensors[""], tensors["_scales"]
        assert data is not None
        assert scales is not None
        return replace(self.packed, data=data, scales=scales, zeros=tensors["_zeros"], perm=tensors["_perm"])

    @property
    def out_features(self) -> int:
        n: int = self.packed.n
        return n


@dataclass(frozen=True)
class WeightOnlySegment(PackedSegment):
    """``vqp::wna16_linear``: 16-bit activations, weights of 2 to 8 bits or FP8."""

    packed: PackedWeight

    def apply(self, tensors: Tensors, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        p = self.packed
        return torch.ops.vqp.wna16_linear(
            x,
            tensors[""],
            tensors["_scales"],
            tensors["_zeros"],
            tensors["_perm"],
            bias,
            p.kind,
            p.bits,
            p.group_size,
            p.n,
            p.k,
        )

    def dequantize(self, tensors: Tensors) -> torch.Tensor:
        return unpack(self.with_tensors(tensors)).dequantize()


@dataclass(frozen=True)
class Int8Segment(Segment):
    """``vqp::w8a8_linear``: activations quantized to INT8 per token, or with a static scale."""

    packed: PackedInt8
    in_scale: torch.Tensor | None
    in_zero: torch.Tensor | None
    symmetric: bool

    def tensors(self) -> Tensors:
        p = self.packed
        return {"": p.data, "_scales": p.scales, "_sums": p.sums, "_in_scale": self.in_scale, "_in_zero": self.in_zero}

    def without_tensors(self) -> Segment:
        packed = replace(self.packed, data=_NONE, scales=_NONE, sums=_NONE)
        return Int8Segment(packed, None, None, self.symmetric)

    def apply(self, tensors: Tensors, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return torch.ops.vqp.w8a8_linear(
            x,
            tensors[""],
            tensors["_scales"],
            tensors["_sums"],
            bias,
            tensors["_in_scale"],
            tensors["_in_zero"],
            self.symmetric,
            self.packed.n,
            self.packed.k,
        )

    def dequantize(self, tensors: Tensors) -> torch.Tensor:
        data, scales = tensors[""], tensors["_scales"]
        assert data is not None
        assert scales is not None
        codes = unpack_int8(data, self.packed.n, self.packed.k)
        return codes.float() * scales[: self.packed.n, None]

    @property
    def out_features(self) -> int:
        return self.packed.n


@dataclass(frozen=True)
class DequantizingSegment(Segment):
    """Any device without kernels: the canonical tensors, dequantized for each call. Correct, and slow."""

    weight: CanonicalWeight
    dtype: torch.dtype
    shape: tuple[int, int] = field(default=(0, 0))

    def tensors(self) -> Tensors:
        w = self.weight
        return {"": w.codes, "_scales": w.scales, "_zeros": w.zeros, "_g_idx": w.group_index().int()}

    def without_tensors(self) -> Segment:
        bare = replace(self.weight, codes=_NONE, scales=_NONE, zeros=None, g_idx=None)
        return DequantizingSegment(bare, self.dtype, (self.weight.out_features, self.weight.in_features))

    def dequantize(self, tensors: Tensors) -> torch.Tensor:
        codes, scales, zeros, index = (tensors[s] for s in ("", "_scales", "_zeros", "_g_idx"))
        assert codes is not None
        assert scales is not None
        assert index is not None
        if self.weight.kind != "int":
            return codes.view(FP8_DTYPES[self.weight.kind]).float() * scales.float()[:, index]
        zero = (1 << (self.weight.bits - 1)) if zeros is None else zeros.float()[:, index]
        return (codes.float() - zero) * scales.float()[:, index]

    def apply(self, tensors: Tensors, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.dequantize(tensors).to(x.dtype), bias)

    @property
    def out_features(self) -> int:
        return self.shape[0] or self.weight.out_features


def serves_int8(scheme: Scheme, weight: CanonicalWeight) -> bool:
    """Whether the INT8 kernel can run this W8A8 weight: one symmetric scale per output channel.

    Other W8A8 weights (grouped, with zero points) run with 16-bit activations, which is nearer
    to the original model than what their config describes.
    """
    act = scheme.activation
    return (
        act is not None
        and act.kind == "int"
        and act.strategy in ("token", "tensor")
        and weight.kind == "int"
        and weight.bits == 8
        and weight.zeros is None
        and weight.g_idx is None
        and weight.scales.shape[1] == 1
    )


def static_int8(static: dict[str, torch.Tensor], symmetric: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Scale (1,) and, unless symmetric, INT8 zero point (1,) of a static activation range; see ``build_segment``."""
    if symmetric:
        return static["scale"].reshape(1).clone(), None
    scale = ((static["high"] - static["low"]) / 255).reshape(1)
    return scale, (-128 - static["low"] / scale).round().to(torch.int32)


def build_segment(
    weight: CanonicalWeight, scheme: Scheme, static: dict[str, torch.Tensor], device: torch.device, dtype: torch.dtype
) -> Segment:
    """Choose a kernel for ``weight`` and pack for it.

    Args:
        static: ``low``, ``high`` and ``scale`` of a static activation range, or empty.
        device: where the layer runs.
        dtype: the layer's activation dtype.
    """
    if device.type != "cpu":
        from vllm_quant_plugin.methods import cuda_segment, cuda_w8a8_segment  # they derive from Segment above

        if cuda_segment.serves(weight, device, dtype):
            if cuda_w8a8_segment.serves(weight, scheme, device):
                return cuda_w8a8_segment.cuda_w8a8_segment(weight, scheme, static)
            return cuda_segment.cuda_segment(weight)
        return DequantizingSegment(weight.plain(), dtype)
    act = scheme.activation
    if act is None or not serves_int8(scheme, weight):
        return WeightOnlySegment(pack(weight))
    packed = pack_int8((weight.codes ^ 0x80).view(torch.int8), weight.scales)
    if act.dynamic:
        return Int8Segment(packed, None, None, act.symmetric)
    return Int8Segment(packed, *static_int8(static, act.symmetric), act.symmetric)


class PackedLinear:
    """The segments of one layer, and where their tensors are on it.

    Between ``build`` (while the checkpoint loads) and ``register`` (after it has loaded) the
    object holds the tensors itself.
    """

    def __init__(self, segments: list[Segment]) -> None:
        self._segments = segments
        self._tensors: list[Tensors] = [s.tensors() for s in segments]
        self._prefix: str | None = None

    @classmethod
    def build(
        cls,
        pieces: list[CanonicalWeight],
        scheme: Scheme,
        static: dict[str, torch.Tensor],
        device: torch.device,
        dtype: torch.dtype,
    ) -> PackedLinear:
        return cls([build_segment(piece, scheme, static, device, dtype) for piece in pieces])

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for group in self._tensors for t in group.values() if t is not None)

    @property
    def out_features(self) -> int:
        return sum(s.out_features for s in self._segments)

    def register(self, layer: torch.nn.Module, prefix: str = "weight_packed") -> None:
        """Move the tensors to parameters of ``layer`` named ``prefix``, ``prefix_scales``, ..."""
        self._prefix = prefix
        for i, tensors in enumerate(self._tensors):
            for suffix, tensor in tensors.items():
                parameter = None if tensor is None else torch.nn.Parameter(tensor, requires_grad=False)
                layer.register_parameter(self._name(i, suffix), parameter)
        self._segments = [s.without_tensors() for s in self._segments]
        self._tensors = [dict.fromkeys(t) for t in self._tensors]

    def _name(self, index: int, suffix: str) -> str:
        return f"{self._prefix}{suffix}" + (f"_{index}" if index else "")

    def _of(self, layer: torch.nn.Module, index: int) -> Tensors:
        if self._prefix is None:
            return self._tensors[index]
        return {suffix: getattr(layer, self._name(index, suffix)) for suffix in self._tensors[index]}

    def __call__(self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """x (..., K) to (..., N) in x's dtype."""
        if len(self._segments) == 1:
            return self._segments[0].apply(self._of(layer, 0), x, bias)
        outputs, start = [], 0
        for i, segment in enumerate(self._segments):
            stop = start + segment.out_features
            part = None if bias is None else bias[start:stop]
            outputs.append(segment.apply(self._of(layer, i), x, part))
            start = stop
        return torch.cat(outputs, dim=-1)

    def dequantize(self, layer: torch.nn.Module) -> torch.Tensor:
        """float32 (N, K)."""
        return torch.cat([s.dequantize(self._of(layer, i)) for i, s in enumerate(self._segments)])


__all__ = ["PackedLinear", "build_segment", "ops", "serves_int8"]
