"""GPTQ (Frantar et al., 2022, arXiv:2210.17323) with GPTQModel's solver on second moments of our own."""

from __future__ import annotations

import functools
import os
from typing import Any

import torch
from torch import nn

from vllm_quant_kernels.canonical import CanonicalWeight
from vllm_quant_plugin.errors import BackendError
from vllm_quant_plugin.quantize.quiet import quiet_output
from vllm_quant_plugin.scheme import Scheme


@functools.cache
def _library() -> tuple[Any, Any]:
    """GPTQModel's solver and configuration classes; its banner and log stay hidden.

    Raises:
        BackendError: not installed.
    """
    if (os.cpu_count() or 1) <= 2:
        # Its worker pool reserves cores that a small machine does not have.
        os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    try:
        with quiet_output():
            from gptqmodel.quantization import QuantizeConfig
            from gptqmodel.quantization.gptq import GPTQ
    except ImportError as err:
        raise BackendError(
            f"GPTQ needs gptqmodel ({err.name} is missing)", "pip install 'vllm-quant-plugin[quantize]'"
        ) from None
    return GPTQ, QuantizeConfig


def solve(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    tokens: int,
    scheme: Scheme,
    *,
    damp: float,
    mse: float,
    static_groups: bool,
) -> CanonicalWeight:
    """Round a linear module's weight so that its output changes least.

    Args:
        weight: float32 (N, K); left as it is.
        hessian: float32 (K, K), the sum of x x^T over ``tokens`` tokens.
        damp, mse, static_groups: see ``Recipe``.

    Returns:
        Canonical weight with float16 scales (N, G); ``g_idx`` set for act-order.
    """
    solver_class, config_class = _library()
    config = config_class(
        bits=scheme.bits, group_size=scheme.group_size, sym=scheme.symmetric, desc_act=scheme.act_order,
        act_group_aware=False, static_groups=static_groups, mse=mse, damp_percent=damp, offload_to_disk=False,
    )  # fmt: skip
    n, k = weight.shape
    work = nn.Linear(k, n, bias=False, device="meta")
    work.weight = nn.Parameter(weight.clone(), requires_grad=False)
    with quiet_output(), torch.no_grad():
        solver = solver_class(work, config)
        solver.quantizer.configure(perchannel=True)
        # The library accumulates 2 / tokens x x^T; the factor cancels in everything but its loss figure.
        solver.H = hessian * (2.0 / max(tokens, 1))
        solver.nsamples = solver._hessian_total_samples = tokens
        rounded, scales, zeros, g_idx, *_ = solver.quantize()
        solver.free()
    return _canonical(rounded, scales, zeros, g_idx.to(scales.device), scheme, k)


def _canonical(
    rounded: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, g_idx: torch.Tensor, scheme: Scheme, k: int
) -> CanonicalWeight:
    """The solver's dequantized weight (N, K) back to codes, which are exact integers up to float32 rounding."""
    index = g_idx.long()
    codes = (rounded.float() / scales[:, index] + zeros[:, index]).round()
    codes = codes.clamp_(0, (1 << scheme.bits) - 1).to(torch.uint8)
    return CanonicalWeight(
        codes=codes,
        scales=scales.half(),
        bits=scheme.bits,
        group_size=scheme.group_of(k),
        zeros=None if scheme.symmetric else zeros.round().to(torch.uint8),
        g_idx=g_idx.to(torch.int32) if scheme.act_order else None,
    )
