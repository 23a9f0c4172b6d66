"""Experts of a mixture through vLLM's fused-MoE kernels, whatever format they came in.

The canonical weights become the tensors of a compressed-tensors checkpoint, and vLLM's own method for such a
checkpoint chooses the kernel (its fused-MoE oracle), packs for it and computes:

    integers, 16-bit activations   w13_weight_packed (E, 2 I, H bits / 32), w13_weight_scale (E, 2 I, groups), ...
    INT8, FP8, 8-bit activations   w13_weight (E, 2 I, H), w13_weight_scale (E, 2 I, 1) or per 128 x 128 block

Activations are quantized per token also where the checkpoint has a static range: vLLM's fused kernels take one only
together with a single weight scale for gate and up, and would requantize both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from vllm_quant_kernels import env
from vllm_quant_kernels.canonical import CanonicalWeight
from vllm_quant_kernels.cuda.w8a8.weight import block_scales, serves
from vllm_quant_kernels.packing import pack_dense
from vllm_quant_kernels.reasons import int8_gemm
from vllm_quant_kernels.scheme import E4M3, PER_CHANNEL, WeightScheme
from vllm_quant_plugin.adapter import integers
from vllm_quant_plugin.adapter.forms import COLUMNS, GROUPS, Form, Zeros, forms

BLOCK = 128
# (matrix, number of the expert on this rank) -> the pieces of the matrix along the output.
Weights = Mapping[tuple[str, int], list[CanonicalWeight]]


@dataclass(frozen=True)
class Sizes:
    """Of one layer of experts on this rank."""

    experts: int
    hidden: int
    intermediate: int


def take_over(
    layer: Any, weights: Weights, scheme: WeightScheme, moe: Any, sizes: Sizes, dtype: torch.dtype
) -> Any | None:
    """vLLM's method for ``layer``, with the experts packed as its parameters; None where vLLM has none for them.

    Args:
        moe: vLLM's MoE configuration.
        dtype: of the activations.
    """
    if env.batch_invariant():
        return None
    flat = {key: parts[0] for key, parts in weights.items()}
    if any(len(parts) > 1 for parts in weights.values()):
        return None
    if any(w.g_idx is not None and w.scales.shape[1] > 1 for w in flat.values()):
        return None  # one gather serves all experts, and theirs differ
    device = next(iter(flat.values())).scales.device
    for method, form in _methods(list(flat.values()), scheme, moe):
        with torch.device(device):
            method.create_weights(
                layer, sizes.experts, sizes.hidden, sizes.intermediate, dtype, weight_loader=_no_loader
            )
        for (matrix, expert), weight in flat.items():
            # An object of its own: a weight keeps its codes once they are unpacked, here those of one expert only.
            weight = weight.rows(0, weight.out_features)
            for name, tensor in _tensors(weight, form, dtype, getattr(method, "block_quant", False)).items():
                getattr(layer, f"{matrix}_{name}").data[expert].copy_(tensor)
        method.process_weights_after_loading(layer)
        return method
    return None


def _no_loader(*_: Any, **__: Any) -> None:
    """The weight loader of parameters that are filled here."""


def _methods(weights: list[CanonicalWeight], scheme: WeightScheme, moe: Any) -> Iterator[tuple[Any, Form | None]]:
    """vLLM's methods that can serve the weights, the one to prefer first, and the form of integers they take."""
    from vllm_quant_plugin import compat_experts as vllm

    if scheme.value == E4M3:
        found = _float_arguments(weights, scheme)
        if found is not None:
            yield from _made(vllm.CompressedTensorsW8A8Fp8MoEMethod, *found, moe, None)
        return
    act = scheme.activation
    if int8_gemm(scheme) is None and act is not None and act.dynamic and act.symmetric and all(map(serves, weights)):
        channel = _arguments(num_bits=8, type="int", strategy="channel", symmetric=True)
        token = _arguments(num_bits=8, type="int", strategy="token", symmetric=True, dynamic=True)
        yield from _made(vllm.CompressedTensorsW8A8Int8MoEMethod, channel, token, moe, None)
    for form in _forms(weights):
        group = None if form.group == PER_CHANNEL else form.group
        strategy = "channel" if group is None else "group"
        arguments = _arguments(
            num_bits=form.bits, type="int", strategy=strategy, group_size=group, symmetric=not form.zeros
        )
        yield from _made(vllm.CompressedTensorsWNA16MoEMethod, arguments, None, moe, form)


def _made(cls: Any, weights: Any, inputs: Any, moe: Any, form: Form | None) -> Iterator[tuple[Any, Form | None]]:
    """The method, unless vLLM has no kernel for it on this GPU, or one that keeps 16-bit weights."""
    try:
        method = cls(weights, inputs, moe)
    except (ValueError, NotImplementedError, AssertionError):
        return
    if getattr(getattr(method, "wna16_backend", None), "name", "") != "EMULATION":
        yield method, form


def _arguments(**fields: Any) -> Any:
    from compressed_tensors.quantization import QuantizationArgs

    return QuantizationArgs(**fields)


def _float_arguments(weights: list[CanonicalWeight], scheme: WeightScheme) -> tuple[Any, Any] | None:
    if scheme.activation is None or not all(map(serves, weights)):
        return None
    if scheme.block is None:
        channel = _arguments(num_bits=8, type="float", strategy="channel", symmetric=True)
        return channel, _arguments(num_bits=8, type="float", strategy="token", symmetric=True, dynamic=True)
    whole = all(weight.out_features % BLOCK == weight.in_features % BLOCK == 0 for weight in weights)
    if not whole or any(block_scales(weight) is None for weight in weights):
        return None
    blocks = _arguments(num_bits=8, type="float", strategy="block", block_structure=[BLOCK, BLOCK], symmetric=True)
    group = _arguments(num_bits=8, type="float", strategy="group", group_size=BLOCK, symmetric=True, dynamic=True)
    return blocks, group


def _forms(weights: list[CanonicalWeight]) -> Iterator[Form]:
    """The forms that all weights can have."""
    kinds = {integers.zeros_of(weight) for weight in weights}
    if "floating" in kinds:
        return
    zeros: Zeros = "wide" if "wide" in kinds else "codes" if "codes" in kinds else "none"
    if all(weight.scales.shape[1] == 1 for weight in weights):
        groups: tuple[int, ...] = (PER_CHANNEL,)
    else:
        spans = [weight.in_features if weight.scales.shape[1] == 1 else weight.group_size for weight in weights]
        whole = [*spans, *(weight.in_features for weight in weights)]
        groups = tuple(size for size in GROUPS if not any(value % size for value in whole))
    if any(weight.in_features % COLUMNS or weight.out_features % COLUMNS for weight in weights):
        return
    for form in forms(weights[0].bits, zeros, groups):
        if not form.offset and all(integers.fits(weight, form) for weight in weights):
            yield form


def _tensors(weight: CanonicalWeight, form: Form | None, dtype: torch.dtype, blocks: bool) -> dict[str, torch.Tensor]:
    """The checkpoint's tensors of one expert's matrix; ``blocks`` for scales of 128 x 128 blocks."""
    if form is None:
        codes = weight.plain().codes
        if weight.kind == "int":
            return {"weight": (codes ^ 0x80).view(torch.int8), "weight_scale": weight.scales.float()}
        scales = block_scales(weight) if blocks else weight.scales.float()
        assert scales is not None
        return {"weight": codes.view(torch.float8_e4m3fn), "weight_scale": scales}
    made = integers.convert(weight, integers.straight(weight, form.group), form, dtype)
    tensors = {"weight_packed": pack_dense(made.codes, form.bits), "weight_scale": made.scales}
    if made.zeros is not None:
        tensors["weight_zero_point"] = pack_dense(made.zeros.t().contiguous(), form.bits).t()
    return tensors
