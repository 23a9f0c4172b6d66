"""Round to nearest: no data, one pass, in memory of the largest weight. INT8 and FP8 build on it.

With calibration text it also measures static activation scales, and the error that rounding makes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from vllm_quant_kernels.scheme import PER_TENSOR, ActivationScheme, Int
from vllm_quant_plugin.formats.compressed_tensors import PACK_QUANTIZED
from vllm_quant_plugin.formats.fused import siblings
from vllm_quant_plugin.quantize.algorithm import (
    Algorithm,
    Cost,
    LayerTask,
    SolvedLayer,
    matmul_flop,
    register_algorithm,
)
from vllm_quant_plugin.quantize.io.storage import stored_scale_dtype
from vllm_quant_plugin.quantize.modules import Linear
from vllm_quant_plugin.quantize.options import SchemeRequest
from vllm_quant_plugin.schemes import StoredScheme

if TYPE_CHECKING:
    import torch

    from vllm_quant_kernels.canonical import CanonicalWeight
    from vllm_quant_plugin.quantize.engine.statistics import Group, InputRange, Moments

INT8_MAX, E4M3_MAX = 127.0, 448.0
# Where calibration data never reached a module (an expert that was not routed to), its static scale is for unit inputs.
UNSEEN_PEAK = 1.0


class RoundToNearest(Algorithm):
    """Round to nearest; what INT8 and FP8 share."""

    name = "rtn"
    bits: ClassVar[tuple[int, ...]] = (2, 3, 4, 5, 6, 7, 8)
    mixed_bits: ClassVar[tuple[int, ...]] = (2, 3, 4, 5, 6, 8)
    data_free = True

    def scheme(self, request: SchemeRequest) -> StoredScheme:
        bits, group_size = self.integer_weights(request)
        self.refuse_activations(request)
        symmetric = request.symmetric is not False
        made = StoredScheme(Int(bits), group_size, symmetric=symmetric, storage=PACK_QUANTIZED)
        return self.with_activations(made, request.activations)

    def cost(self, layer: Sequence[Linear], tokens: int, options: Any) -> Cost:
        return Cost(flop=2 * matmul_flop(layer, tokens))

    def round_weight(self, weight: torch.Tensor, scheme: StoredScheme, peak: float | None = None) -> CanonicalWeight:
        if peak is not None:
            return quantize_with_scale(weight, peak / E4M3_MAX or 1.0)
        return quantize_weight(weight, scheme)

    def solve_module(self, weight: torch.Tensor, scheme: StoredScheme, options: Any, moments: Moments) -> torch.Tensor:
        return quantize_weight(weight, scheme).dequantize()

    def prepare(self, task: LayerTask, groups: Sequence[Group], ranges: Sequence[InputRange]) -> None:
        """Change the layer before its weights are rounded; ``ranges`` have to follow."""

    def solve(self, task: LayerTask) -> SolvedLayer:
        """Round every module to nearest; static scales as ``input_scale``.

        Errors count the rounding of activations as well, on the sample that ``collect_ranges`` keeps.
        """
        import torch

        from vllm_quant_plugin.quantize.engine.statistics import collect_ranges, find_groups, weight_of

        with torch.no_grad():
            groups = find_groups(task.layer, task.schemes, task.batches[0], task.kwargs)
            measuring, preparing, rounding = task.step.split((2, 2, 1))
            ranges = collect_ranges(task.layer, groups, task.batches, task.kwargs, measuring)
            self.prepare(replace(task, step=preparing), groups, ranges)
            solved = SolvedLayer({name: _round_module(task, name) for name in task.schemes})
            for done, (group, found) in enumerate(zip(groups, ranges, strict=True)):
                rounding.at(done / len(groups))
                for name in group.names:
                    activation, original = task.schemes[name].activation, weight_of(task.layer, name)
                    rounded = round_activations(found.sample, activation, float(found.peak.max()))
                    expected = found.sample @ original.T
                    lost = (rounded @ solved.weights[name].dequantize().T - expected).square().sum()
                    energy = float(expected.square().sum())
                    solved.errors[name] = float(lost) / energy if energy > 0 else 0.0
                    solved.tokens[name] = found.tokens if bool(found.peak.any()) else 0
                    if activation is not None and not activation.dynamic:
                        solved.more[f"{name}.input_scale"] = input_scale(found, activation)
        return solved


def quantize_weight(
    weight: torch.Tensor, scheme: StoredScheme, scale_dtype: torch.dtype | None = None
) -> CanonicalWeight:
    """Round one (N, K) weight to ``scheme``.

    Args:
        scale_dtype: of integer scales; None for what the format keeps for the weight's dtype.

    Raises:
        ValueError: the weight holds a NaN or an infinity.
    """
    import torch

    from vllm_quant_plugin.rtn import quantize

    if not bool(torch.isfinite(weight).all()):
        raise ValueError("holds NaN or infinity")
    return quantize(weight, scheme, scale_dtype or stored_scale_dtype(scheme, weight.dtype))


def quantize_with_scale(weight: torch.Tensor, scale: float) -> CanonicalWeight:
    """FP8 E4M3 with one given scale for the whole (N, K) weight."""
    import torch

    from vllm_quant_kernels.canonical import CanonicalWeight

    codes = (weight.float() / scale).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).view(torch.uint8)
    scales = torch.full((weight.shape[0], 1), scale, dtype=torch.float32)
    return CanonicalWeight(codes, scales, 8, weight.shape[1], kind="fp8_e4m3")


def _round_module(task: LayerTask, name: str) -> CanonicalWeight:
    from vllm_quant_plugin.quantize.engine.statistics import weight_of

    weight, scheme = weight_of(task.layer, name), task.schemes[name]
    if scheme.group_size == PER_TENSOR and not scheme.is_int:
        # vLLM fuses these into one matrix with one scale.
        parts = [weight_of(task.layer, part) for part in siblings(name) if part in task.schemes]
        return quantize_with_scale(weight, max(float(p.abs().max()) for p in parts) / E4M3_MAX or 1.0)
    return quantize_weight(weight, scheme, stored_scale_dtype(scheme, task.dtype))


def round_activations(x: torch.Tensor, activation: ActivationScheme | None, peak: float) -> torch.Tensor:
    """float32 (T, K) inputs as the kernels see them: rounded to INT8 or FP8 steps and back.

    Args:
        activation: None leaves them alone.
        peak: largest magnitude over the calibration text, for static scales.
    """
    import torch

    if activation is None or activation.strategy == "group":
        return x
    top = INT8_MAX if isinstance(activation.value, Int) else E4M3_MAX
    if activation.dynamic:
        scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-12) / top
    else:
        scale = torch.tensor(max(peak, 1e-12) / top, device=x.device)
    values = (x / scale).clamp(-top, top)
    rounded = values.round() if isinstance(activation.value, Int) else values.to(torch.float8_e4m3fn).float()
    return rounded * scale


def input_scale(found: InputRange, activation: ActivationScheme) -> torch.Tensor:
    """The static scale of an input, float32 (1,): its largest magnitude over the type's largest value."""
    import torch

    peak = float(found.peak.max()) or UNSEEN_PEAK
    return torch.tensor([peak / (INT8_MAX if isinstance(activation.value, Int) else E4M3_MAX)])


register_algorithm(RoundToNearest())
