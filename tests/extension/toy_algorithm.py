"""An algorithm from outside the package: round to nearest, the largest weights clipped as suits the calibration text.

Of ``--clip-steps`` clipping factors, each module gets the one that loses the least of its output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import typer

from vllm_quant_kernels.scheme import Int
from vllm_quant_plugin.errors import UsageError
from vllm_quant_plugin.quantize.algorithm import Algorithm, Cost, LayerTask, SolvedLayer, matmul_flop, moment_flop
from vllm_quant_plugin.quantize.modules import Linear, moment_sizes
from vllm_quant_plugin.quantize.options import SchemeRequest
from vllm_quant_plugin.schemes import Storage, StoredScheme


@dataclass(frozen=True)
class ToyOptions:
    clip_steps: Annotated[int, typer.Option(help="toy: clipping factors that are tried, 5% apart.")] = 4

    def __post_init__(self) -> None:
        if not 1 <= self.clip_steps <= 10:
            raise UsageError(f"--clip-steps {self.clip_steps} is out of range", "it is 1 to 10")


class ToyAlgorithm(Algorithm):
    name = "toy"
    bits = (4,)
    options = ToyOptions

    def scheme(self, request: SchemeRequest) -> StoredScheme:
        bits, group_size = self.integer_weights(request, group_size=32)
        self.refuse_activations(request)
        if request.symmetric is False:
            raise UsageError("toy has no zero points", "leave --asym out")
        return StoredScheme(Int(bits), group_size, storage=Storage("toy"))

    def cost(self, layer: Sequence[Linear], tokens: int, options: ToyOptions) -> Cost:
        squares = sum(2.0 * m.out_features * m.in_features**2 for m in layer)
        flop = 2 * matmul_flop(layer, tokens) + moment_flop(layer, tokens) + options.clip_steps * squares
        return Cost(flop=flop, memory_bytes=sum(moment_sizes(layer)))

    def solve(self, task: LayerTask) -> SolvedLayer:
        from vllm_quant_plugin.quantize.engine.statistics import (
            collect_moments,
            find_groups,
            relative_error,
            weight_of,
        )
        from vllm_quant_plugin.rtn import quantize_int

        groups = find_groups(task.layer, task.schemes, task.batches[0], task.kwargs)
        solved = SolvedLayer()
        for group, found in zip(groups, collect_moments(task.layer, groups, task.batches, task.kwargs), strict=True):
            for name in group.names:
                weight, scheme = weight_of(task.layer, name), task.schemes[name]
                peaks = weight.unflatten(1, (-1, scheme.group_of(weight.shape[1]))).abs().amax(-1, keepdim=True)
                tried = []
                for step in range(task.options.clip_steps):
                    top = peaks * (1 - 0.05 * step)
                    clipped = weight.unflatten(1, (peaks.shape[1], -1)).clamp(-top, top).flatten(1)
                    made = quantize_int(clipped, scheme.bits, scheme.group_size, scale_dtype=task.dtype)
                    tried.append((relative_error(weight, made.dequantize(), found.hessian), step, made))
                solved.errors[name], _, solved.weights[name] = min(tried)
                solved.tokens[name] = found.signal
        return solved

    def describe(self, options: ToyOptions) -> str:
        return f"{options.clip_steps} clipping factors"


ALGORITHM = ToyAlgorithm()
