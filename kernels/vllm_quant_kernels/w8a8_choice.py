"""Which implementation runs an 8-bit product: one table, by what the weight is and the number of rows.

    fused     one launch of our kernel, which quantizes the activations itself (at most 16 rows)
    own       a launch that quantizes, one of our kernel
    cublaslt  a launch that quantizes, cuBLASLt through torch._int_mm or torch._scaled_mm, a pass for scales and bias
    rowwise   FP8: a launch that quantizes, torch._scaled_mm with scales and bias in its epilogue

No row of this table has been measured by this project: it says what published figures and the instructions
suggest (docs/cuda-w8a8.md), until benchmarks/gpu_w8a8.py has run and printed a measured one to put here.
"""

from __future__ import annotations

from typing import Literal

Backend = Literal["fused", "own", "cublaslt", "rowwise"]

# By kind: (largest M, implementation), in order; the last has no limit.
TABLE: dict[str, tuple[tuple[int | None, Backend], ...]] = {
    # 8-bit weights of a layer are read once up to about 100 rows: the bus decides, and launches around it. Fused, every
    # block reads all rows of x: from about 4 rows of 8192 on that is longer than a launch that waits for nobody.
    "int8": ((4, "fused"), (128, "own"), (None, "cublaslt")),
    # mma.sync with E4M3 is FP16 arithmetic on sm_90; torch has wgmma kernels. The pass for scales of `cublaslt` moves
    # 10 bytes an output.
    "fp8": ((4, "fused"), (64, "own"), (None, "rowwise")),
    # torch's block-scaled products exist on a few combinations of torch and GPU only.
    "fp8-blocks": ((None, "own"),),
}
FUSED_ROWS = 16
# torch._int_mm refuses 16 rows and fewer.
CUBLASLT_ROWS = 17


def choose(
    kind: str, m: int, n: int, k: int, batch_invariant: bool = False, table: dict[str, tuple] | None = None
) -> Backend:
    """The implementation for y (m, n) = x (m, k) W^T.

    What the table says, unless torch does not take the shape or nobody promises batch invariance of it. FP8
    with batch invariance is never fused: the order of its sums would change with the number of rows.
    """
    backend: Backend = next(backend for limit, backend in (table or TABLE)[kind] if limit is None or m <= limit)
    if backend in ("cublaslt", "rowwise") and (batch_invariant or m < CUBLASLT_ROWS or n % 16 or k % 16):
        return "own"
    if backend == "fused" and (m > FUSED_ROWS or (batch_invariant and kind != "int8")):
        return "own"
    return backend
