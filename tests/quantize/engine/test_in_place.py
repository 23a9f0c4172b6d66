"""Linear algebra without copies: torch's values, bit for bit, in the memory that was given."""

from __future__ import annotations

import pytest
import torch

from vllm_quant_plugin.quantize.engine.in_place import inverse_factor, permute, scaled_copy, scaled_in_place


def _moment(k: int = 300, tokens: int = 900) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, k, generator=generator) @ torch.randn(k, k, generator=generator)
    return x.T @ x


def test_inverse_factor_is_torchs() -> None:
    moment = _moment()
    # As GPTQModel computes it, with a new matrix for each step.
    expected = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(moment)), upper=True)
    own = scaled_copy(moment, 1.0)
    assert own.data_ptr() != moment.data_ptr()
    assert inverse_factor(own)
    assert torch.equal(own, expected)
    product = own.double().T @ own.double() @ moment.double()
    torch.testing.assert_close(product, torch.eye(len(moment), dtype=torch.float64), atol=1e-2, rtol=0)


def test_steps_do_not_move_the_matrix() -> None:
    own = scaled_copy(_moment(), 1.0)
    place = own.data_ptr()
    order = torch.randperm(len(own), generator=torch.Generator().manual_seed(1))
    permute(own, order)
    assert inverse_factor(own)
    assert own.data_ptr() == place
    # Column-major, or each step would have worked on a copy.
    assert own.stride() == (1, len(own))


def test_a_matrix_that_is_not_positive_definite_is_reported() -> None:
    assert not inverse_factor(scaled_copy(-torch.eye(4), 1.0))
    assert not inverse_factor(scaled_copy(torch.full((4, 4), float("nan")), 1.0))


@pytest.mark.parametrize("k", [5, 256, 300, 600])
def test_a_lent_matrix_keeps_its_memory(k: int) -> None:
    matrix = torch.arange(float(k * k)).reshape(k, k)
    expected, place = 0.5 * matrix, matrix.data_ptr()
    own = scaled_in_place(matrix, 0.5)
    assert own.data_ptr() == place
    assert own.stride() == (1, k)
    assert torch.equal(own, expected)


@pytest.mark.parametrize("k", [5, 256, 300])
def test_permutation_is_torchs(k: int) -> None:
    matrix = torch.arange(float(k * k)).reshape(k, k)
    order = torch.randperm(k, generator=torch.Generator().manual_seed(2))
    own = scaled_copy(matrix, 2.0)
    permute(own, order)
    assert torch.equal(own, 2 * matrix[order][:, order])
