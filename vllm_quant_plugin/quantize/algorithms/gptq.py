"""GPTQ (Frantar et al., 2022, arXiv:2210.17323) with GPTQModel's solver on second moments of our own."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from vllm_quant_kernels.canonical import CanonicalWeight
from vllm_quant_plugin.console import suppress_output
from vllm_quant_plugin.errors import BackendError
from vllm_quant_plugin.quantize.engine.in_place import OwnedMatrix, inverse_factor
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
        with suppress_output():
            from gptqmodel.quantization import QuantizeConfig
            from gptqmodel.quantization.gptq import GPTQ
            from gptqmodel.quantization.quantizer import Quantizer
    except ImportError as err:
        raise BackendError(
            f"GPTQ needs gptqmodel ({err.name} is missing)", "pip install 'vllm-quant-plugin[quantize]'"
        ) from None

    class GroupQuantizer(Quantizer):
        """Leaves out the scale search over the whole matrix that the library starts with and, given groups, forgets."""

        forgotten = False

        def find_params(self, x: torch.Tensor, weight: bool = False) -> None:
            if not self.forgotten:
                super().find_params(x, weight=weight)
            self.forgotten = False

    class Solver(GPTQ):
        """GPTQModel's, in less memory and time on a CPU; on a GPU as it is, for the library's kernel."""

        def create_quantizer(self, name: str) -> Quantizer:
            on_cpu = self.module.weight.device.type == "cpu"
            return GroupQuantizer(qcfg=self.qcfg, name=name) if on_cpu else super().create_quantizer(name)

        def finalize_hessian(self, target_device: torch.device | None = None) -> torch.Tensor:
            # The last call before that search.
            self.quantizer.forgotten = self.qcfg.group_size != -1
            hessian: torch.Tensor = super().finalize_hessian(target_device)
            return hessian

        def hessian_inverse(self, hessian: torch.Tensor) -> tuple[torch.Tensor | None, float]:
            if not isinstance(hessian, OwnedMatrix):
                inverse: tuple[torch.Tensor | None, float] = super().hessian_inverse(hessian)
                return inverse
            damp, diagonal = float(self.qcfg.damp_percent), hessian.diagonal()
            undamped = diagonal.clone()
            diagonal.add_(damp * undamped.mean())
            if not inverse_factor(hessian.plain):
                raise _Indefinite
            # All that the library reads of the matrix from here on is its diagonal.
            self.H = undamped.expand_as(hessian)
            return hessian.plain, damp

    return Solver, QuantizeConfig


class _Indefinite(Exception):
    """The damped matrix has no Cholesky factor."""


def _run(solver: Any, tokens: int, scheme: Scheme) -> CanonicalWeight:
    with suppress_output(), torch.no_grad():
        solver.quantizer.configure(perchannel=True)
        solver.nsamples = solver._hessian_total_samples = tokens
        rounded, scales, zeros, g_idx, *_ = solver.quantize()
        solver.free()
    return _canonical(rounded, scales, zeros, g_idx.to(scales.device), scheme)


def solve(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    tokens: int,
    scheme: Scheme,
    *,
    damp: float,
    mse: float,
    static_groups: bool,
    restore: Callable[[], None] | None = None,
) -> CanonicalWeight:
    """Round a linear module's weight so that its output changes least.

    Args:
        weight: float32 (N, K); left as it is.
        hessian: float32 (K, K), the sum of x x^T over ``tokens`` tokens.
        damp, mse, static_groups: see ``Recipe``.
        restore: brings back the values of ``hessian``, which is worked on in place then and not copied.

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
    work.weight = nn.Parameter(weight, requires_grad=False)
    # The library accumulates 2 / tokens x x^T; the factor cancels in everything but its loss figure.
    factor = 2.0 / max(tokens, 1)
    solver = solver_class(work, config)
    if hessian.device.type == "cpu":
        solver.H = OwnedMatrix.scaled(hessian, factor) if restore is None else OwnedMatrix.over(hessian, factor)
        try:
            return _run(solver, tokens, scheme)
        except _Indefinite:
            # The library tries more damping, for which it needs the matrix again.
            solver = solver_class(work, config)
        finally:
            if restore is not None:
                restore()
    solver.H = hessian * factor
    return _run(solver, tokens, scheme)


def _canonical(
    rounded: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, g_idx: torch.Tensor, scheme: Scheme
) -> CanonicalWeight:
    """The solver's dequantized weight (N, K) back to codes, which are exact integers up to float32 rounding."""
    index = g_idx.long()
    codes = (rounded.float() / scales[:, index]).add_(zeros[:, index]).round_()
    codes = codes.clamp_(0, (1 << scheme.bits) - 1).to(torch.uint8)
    return CanonicalWeight(
        codes=codes,
        scales=scales.half(),
        bits=scheme.bits,
        group_size=scheme.group_of(rounded.shape[1]),
        zeros=None if scheme.symmetric else zeros.round().to(torch.uint8),
        g_idx=g_idx.to(torch.int32) if scheme.act_order else None,
    )
