"""Which implementation runs an 8-bit product: one table, by what the weight is and the number of rows.

    fused      one launch of our kernel, which quantizes the activations itself (at most 16 rows)
    own        a launch that quantizes, one of our kernel
    wgmma      Hopper: the same with our kernel for large M
    cublaslt   a launch that quantizes, cuBLASLt through torch._int_mm or torch._scaled_mm, a pass for scales and bias
    rowwise    FP8: a launch that quantizes, torch._scaled_mm with scales and bias in its epilogue

No row of this table has been measured by this project: it says what published figures and the instructions
suggest (docs/internals/cuda-w8a8.md), until benchmarks/gpu_w8a8.py has run and printed a measured one to put here.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, get_args

Backend = Literal["fused", "own", "wgmma", "cublaslt", "rowwise"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
Table = dict[str, tuple[tuple[int | None, tuple[Backend, ...]], ...]]

# By kind: (largest M, implementations, best first), in order; the last has no limit. Where none of them serves: own.
TABLE: Table = {
    # 8-bit weights of a layer are read once up to about 100 rows: memory bandwidth decides, and launches around it.
    # Fused, every CTA reads all rows of x: from about 4 rows of 8192 on that is longer than a launch that waits for
    # nobody. Above, torch's product costs another pass over 10 bytes per output.
    "int8": ((4, ("fused",)), (128, ("own",)), (None, ("wgmma", "cublaslt"))),
    # mma.sync with E4M3 is FP16 arithmetic on sm_90. torch's kernel has run on hardware, ours has not.
    "fp8": ((4, ("fused",)), (64, ("own",)), (None, ("rowwise", "wgmma", "cublaslt"))),
    "fp8-blocks": ((64, ("own",)), (None, ("wgmma",))),
}
FUSED_ROWS = 16
# torch._int_mm refuses 16 rows and fewer.
CUBLASLT_ROWS = 17
TORCH: tuple[Backend, ...] = ("cublaslt", "rowwise")


def fits(backend: Backend, kind: str, m: int, n: int, k: int, batch_invariant: bool, bf16: bool) -> bool:
    """Whether ``backend`` takes the shape, and promises batch invariance if that is asked for.

    INT8 sums are exact in any order. FP8's order differs between our kernels: those for few rows keep it among
    themselves; fused, it would change with the number of rows.
    """
    blocks = kind == "fp8-blocks"
    if batch_invariant and kind != "int8" and backend != "own":
        return False
    if backend == "fused":
        return m <= FUSED_ROWS and not blocks
    if backend in TORCH:
        shaped = m >= CUBLASLT_ROWS and n % 16 == 0 and k % 16 == 0 and not batch_invariant and not blocks
        return shaped and (backend == "cublaslt" or (kind == "fp8" and bf16))
    return True


def choose(
    kind: str,
    m: int,
    n: int,
    k: int,
    batch_invariant: bool = False,
    bf16: bool = True,
    available: Collection[str] = BACKENDS,
    table: Table | None = None,
) -> Backend:
    """The implementation for y (m, n) = x (m, k) W^T: the first of the table's that is available and fits, else own.

    Args:
        bf16: whether y is BF16, else FP16.
        available: what this device and this installation have (:func:`w8a8_native.available`).
    """
    entries = (table or TABLE)[kind]
    wanted = next(backends for limit, backends in entries if limit is None or m <= limit)
    for backend in wanted:
        if backend in available and fits(backend, kind, m, n, k, batch_invariant, bf16):
            return backend
    return "own"
