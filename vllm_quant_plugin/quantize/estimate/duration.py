"""How long a run will take here, from shapes and a measured multiplication. An estimate: a factor of two is common.

passes over the text     2 flop per weight and token
second moments           2 K^2 per token and input
AWQ                      41 candidates of 2 N K^2 each
GPTQ                     about 3 K^3 for the inverse, 2 N K^2 for the update, a scale search per weight
rounding                 a fixed time per weight: it moves memory
files                    read and hashed, spooled and written
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from vllm_quant_plugin.checkpoint import Checkpoint
from vllm_quant_plugin.quantize.modules import Linear
from vllm_quant_plugin.quantize.recipe import Recipe

# Libraries before the first tensor is read.
START_SECONDS = {True: 8.0, False: 2.0}
# Seconds per byte of input: read, hashed; and of output: spooled, copied, hashed. Measured with one core.
READ_SECONDS, WRITE_SECONDS = 1.2e-9, 3.0e-9
# Seconds per weight and rounding, GPTQ's scale search, and a column of its solver.
ROUND_SECONDS, SEARCH_SECONDS, COLUMN_SECONDS = 1.5e-8, 6.0e-7, 3.0e-4
AWQ_CANDIDATES, CLIP_STEPS, SMOOTH_STEPS, SMOOTH_TOKENS = 41, 10, 12, 256


def measured_flops(size: int = 768, repeats: int = 3) -> float:
    """float32 flop per second of a matrix product, all threads; the best of a few, some milliseconds each."""
    import numpy

    left = numpy.ones((size, size), dtype=numpy.float32)
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        left @ left
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def estimate_seconds(
    checkpoint: Checkpoint, modules: Sequence[Linear], recipe: Recipe, bytes_after: int, flops: float
) -> float:
    """Wall seconds of a whole run of the builtin backend; libraries as a whole take longer.

    Args:
        modules: those that will be quantized.
        bytes_after: of the output.
        flops: float32 flop per second of this machine.
    """
    weights = sum(m.in_features * m.out_features for m in modules)
    seconds = START_SECONDS[recipe.calibration is not None]
    seconds += READ_SECONDS * checkpoint.nbytes + WRITE_SECONDS * bytes_after + ROUND_SECONDS * weights
    if recipe.calibration is None:
        return seconds
    tokens = recipe.calibration.samples * recipe.calibration.seq_len
    # Modules that share an input have their second moment taken once.
    inputs = {(m.name.rpartition(".")[0], m.in_features) for m in modules}
    moments = 2 * tokens * sum(k * k for _, k in inputs)
    squares = sum(2 * m.out_features * m.in_features**2 for m in modules)
    passes = 2 * tokens * weights
    if recipe.method == "gptq":
        work = 4 * passes + moments + squares + sum(3 * m.in_features**3 for m in modules)
        columns = sum(m.in_features for m in modules)
        seconds += COLUMN_SECONDS * columns + SEARCH_SECONDS * weights * (1 if recipe.mse else 0)
    elif recipe.method == "awq":
        work = 2 * passes + moments + AWQ_CANDIDATES * squares
        seconds += ROUND_SECONDS * weights * (AWQ_CANDIDATES + CLIP_STEPS)
    else:
        work = 2 * passes
        if recipe.smooth is not None:
            work += SMOOTH_STEPS * 2 * SMOOTH_TOKENS * weights
            seconds += ROUND_SECONDS * weights * SMOOTH_STEPS
    return seconds + work / flops
