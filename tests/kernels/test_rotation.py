"""Maps of activations in float64 against the compressed-tensors library's own matrices."""

from __future__ import annotations

import pytest
import torch
from compressed_tensors.transform.utils.hadamard import deterministic_hadamard_matrix, random_hadamard_matrix

from vllm_quant_kernels.rotation import BlockMatrix, Hadamard, chain, compute_dtype, factored

EPS = torch.finfo(torch.float64).eps


def activations(features: int) -> torch.Tensor:
    return torch.randn(3, features, generator=torch.Generator().manual_seed(features), dtype=torch.float64)


def assert_equal(found: torch.Tensor, expected: torch.Tensor) -> None:
    """A sum of n products; 8 standard deviations of its rounding."""
    bound = 8 * EPS * found.shape[-1] ** 0.5 * float(expected.abs().max())
    assert float((found - expected).abs().max()) <= bound


@pytest.mark.parametrize("size", [1, 2, 8, 64, 512])
def test_sylvester(size: int) -> None:
    """In blocks; its own inverse."""
    x = activations(2 * size)
    matrix = deterministic_hadamard_matrix(size, torch.float64) / size**0.5
    found = Hadamard.sylvester(size, torch.float64)
    assert_equal(found(x), (x.unflatten(-1, (-1, size)) @ matrix).flatten(-2))
    assert_equal(found(found(x)), x)


@pytest.mark.parametrize("size", [2, 64, 12, 24, 80, 344, 688, 1024, 1536])
@pytest.mark.parametrize("transposed", [False, True])
def test_random_hadamard_matrices_are_kept_as_factors(size: int, transposed: bool) -> None:
    matrix = random_hadamard_matrix(size, torch.float64, gen=torch.Generator().manual_seed(size))
    x = activations(2 * size)
    right = (matrix.T if transposed else matrix) / size**0.5
    found = factored(matrix, torch.float64, transposed=transposed)
    if found is None:
        assert size <= 256  # the known matrix itself
        return
    assert sum(p.numel() for p in found.parameters()) < size * size or size < 16
    assert_equal(found(x), (x.unflatten(-1, (-1, size)) @ right).flatten(-2))


def test_other_matrices_have_no_factors() -> None:
    matrix = random_hadamard_matrix(64, torch.float64, gen=torch.Generator().manual_seed(0))
    matrix[63, 63] *= -1
    assert factored(matrix, torch.float64) is None


def test_order_and_dtypes() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.rand(4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    x = activations(4)
    both = chain([BlockMatrix(first), BlockMatrix(second)])
    assert both is not None
    assert_equal(both(x), x @ first @ second)
    assert chain([]) is None
    assert both(x.bfloat16()).dtype == torch.bfloat16
    assert Hadamard.sylvester(4)(x.half()).dtype == torch.float16
    assert compute_dtype(torch.bfloat16, double=True) == torch.float32
    assert compute_dtype(torch.float32, double=True) == torch.float64
    assert compute_dtype(torch.float32, double=False) == torch.float32
