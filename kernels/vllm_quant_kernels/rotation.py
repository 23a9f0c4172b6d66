"""Linear maps along the last dimension of activations: Hadamard matrices, and matrices as they are.

A map is a module: its tensors are parameters, so that layers share one and vLLM counts and moves it. ``hadamard`` is
the one place that multiplies by a Hadamard matrix. A further kind of map (rotations of pairs of features) is a further
module with the same ``forward``.

    Hadamard      x -> x H / sqrt(n), H a Hadamard matrix of size n, for each block of n features
    BlockMatrix   x -> x M, M any (n, n) matrix, likewise
    Chain         one map after the other
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def sylvester(n: int, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> torch.Tensor:
    """Sylvester's Hadamard matrix: (n, n) of +1 and -1, symmetric; H[i, j] = (-1)^popcount(i & j).

    Raises:
        ValueError: n is no power of two.
    """
    if n <= 0 or n & (n - 1):
        raise ValueError(f"there is no Sylvester matrix of size {n}")
    matrix = torch.ones(1, 1, dtype=dtype, device=device)
    step = torch.tensor([[1, 1], [1, -1]], dtype=dtype, device=device)
    for _ in range(n.bit_length() - 1):
        matrix = torch.kron(step, matrix)
    return matrix


def compute_dtype(dtype: torch.dtype, *, double: bool) -> torch.dtype:
    """What activations of ``dtype`` are mapped in.

    The result is rounded to ``dtype``. Next to that rounding of 16-bit activations, 2^-9 or 2^-12, float32's error is
    nothing, so float64 is used for wider ones only.
    """
    wide = dtype in (torch.float32, torch.float64)
    return torch.float64 if double and wide else torch.float32


def hadamard(x: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """x (..., K) times (left (x) right) / sqrt(n), for each block of n = a * b features.

    A block as an (a, b) matrix X becomes left' X right: two small GEMMs instead of one with n columns.

    Args:
        left, right: Hadamard matrices (a, a) and (b, b) of +1 and -1, in the dtype to compute in. n divides K.

    Returns:
        (..., K) in the dtype that is computed in.
    """
    a, b = left.shape[0], right.shape[0]
    blocks = x.to(right.dtype).unflatten(-1, (-1, a, b))
    return ((left.t() @ (blocks @ right)) * (a * b) ** -0.5).flatten(-3)


class Hadamard(torch.nn.Module):
    """x -> x M for each block, M = diag(s) (C (x) H) / sqrt(n) or its transpose.

    Args:
        core: C, a (k, k) Hadamard matrix in the dtype to compute in.
        right: H, Sylvester's matrix of size n / k.
        signs: s, (n,) of +1 and -1; None for ones.
        transposed: multiply by the transpose, which is the inverse.
    """

    def __init__(
        self, core: torch.Tensor, right: torch.Tensor, signs: torch.Tensor | None = None, *, transposed: bool = False
    ) -> None:
        super().__init__()
        left = core.t() if transposed else core
        self.left = torch.nn.Parameter(left.contiguous(), requires_grad=False)
        self.right = torch.nn.Parameter(right, requires_grad=False)
        self.signs = None if signs is None else torch.nn.Parameter(signs.contiguous(), requires_grad=False)
        self.transposed = transposed

    @classmethod
    def sylvester(cls, size: int, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> Hadamard:
        """Of Sylvester's matrix, its own inverse. Raises ValueError where ``size`` is no power of two."""
        rows = 1 << ((size.bit_length() - 1) // 2)
        return cls(sylvester(rows, dtype, device), sylvester(size // rows, dtype, device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        if self.signs is not None and not self.transposed:
            y = self._flip(y)
        y = hadamard(y, self.left, self.right)
        if self.signs is not None and self.transposed:
            y = self._flip(y)
        return y.to(x.dtype)

    def _flip(self, x: torch.Tensor) -> torch.Tensor:
        assert self.signs is not None
        return (x.to(self.signs.dtype).unflatten(-1, (-1, self.signs.numel())) * self.signs).flatten(-2)


def factored(matrix: torch.Tensor, dtype: torch.dtype, *, transposed: bool = False) -> Hadamard | None:
    """The map by ``matrix / sqrt(n)``, or its transpose, from its factors; None where it has none.

    Random Hadamard matrices are made from a known one of size k and n / k doublings, with random signs of their rows.
    (n, n) elements become k * k + n.

    Args:
        matrix: (n, n) of +1 and -1.
        dtype: to compute in.
    """
    n = matrix.shape[0]
    core = n // (n & -n)
    signs = matrix[:, 0]
    while core < n:
        width = n // core
        left = matrix[::width, ::width] * signs[::width, None]
        right = sylvester(width, matrix.dtype, matrix.device)
        if _is_product(matrix, signs, left, right):
            # Sylvester's part is a product itself: the nearer the two are in size, the fewer operations.
            while 2 * left.shape[0] <= width:
                left, width = torch.kron(left, sylvester(2, left.dtype, left.device)), width // 2
            parts = (part.to(dtype) for part in (left, sylvester(width, dtype, left.device), signs))
            return Hadamard(*parts, transposed=transposed)
        core *= 2
    return None


def _is_product(matrix: torch.Tensor, signs: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether ``matrix`` is diag(signs) (left (x) right): one block of rows at a time, until one differs."""
    width = right.shape[0]
    return all(
        torch.equal(
            matrix[i * width : (i + 1) * width],
            signs[i * width : (i + 1) * width, None] * torch.kron(left[i : i + 1], right),
        )
        for i in range(left.shape[0])
    )


class BlockMatrix(torch.nn.Module):
    """The map by a matrix (n, n), whose dtype is the one to compute in."""

    def __init__(self, matrix: torch.Tensor) -> None:
        super().__init__()
        self.matrix = torch.nn.Parameter(matrix.contiguous(), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        blocks = x.to(self.matrix.dtype).unflatten(-1, (-1, self.matrix.shape[0]))
        return (blocks @ self.matrix).flatten(-2).to(x.dtype)


class Chain(torch.nn.Sequential):
    """One map after the other, the first in the list first."""


def chain(maps: Sequence[torch.nn.Module]) -> torch.nn.Module | None:
    """One map that does what ``maps`` do in order; None where there are none."""
    if len(maps) <= 1:
        return maps[0] if maps else None
    return Chain(*maps)
