"""Linear algebra without copies: torch's values, bit for bit, in the memory that was given."""

from __future__ import annotations

import pytest
import torch

from vllm_quant_plugin.quantize.engine.in_place import OwnedMatrix, inverse_factor


def _moment(k: int = 300, tokens: int = 900) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, k, generator=generator) @ torch.randn(k, k, generator=generator)
    return x.T @ x


def test_inverse_factor_is_torchs() -> None:
    moment = _moment()
    # As GPTQModel computes it, with a new matrix for each step.
    expected = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(moment)), upper=True)
    own = OwnedMatrix.scaled(moment, 1.0)
    assert own.data_ptr() != moment.data_ptr()
    assert inverse_factor(own.plain)
    assert torch.equal(own.plain, expected)
    product = own.plain.double().T @ own.plain.double() @ moment.double()
    torch.testing.assert_close(product, torch.eye(len(moment), dtype=torch.float64), atol=1e-2, rtol=0)


def test_steps_do_not_move_the_matrix() -> None:
    own = OwnedMatrix.scaled(_moment(), 1.0)
    place = own.data_ptr()
    order = torch.randperm(len(own), generator=torch.Generator().manual_seed(1))
    permuted = own[order][:, order]
    assert inverse_factor(permuted.as_subclass(torch.Tensor))
    assert permuted.data_ptr() == place
    # Column-major, or each step would have worked on a copy.
    assert permuted.stride() == (1, len(own))


def test_a_matrix_that_is_not_positive_definite_is_told() -> None:
    assert not inverse_factor(OwnedMatrix.scaled(-torch.eye(4), 1.0).plain)
    assert not inverse_factor(OwnedMatrix.scaled(torch.full((4, 4), float("nan")), 1.0).plain)


@pytest.mark.parametrize("k", [5, 256, 300, 600])
def test_a_lent_matrix_keeps_its_memory(k: int) -> None:
    matrix = torch.arange(float(k * k)).reshape(k, k)
    expected, place = 0.5 * matrix, matrix.data_ptr()
    own = OwnedMatrix.over(matrix, 0.5)
    assert own.data_ptr() == place
    assert own.stride() == (1, k)
    assert torch.equal(own.plain, expected)


@pytest.mark.parametrize("k", [5, 256, 300])
def test_permutation_is_torchs(k: int) -> None:
    matrix = torch.arange(float(k * k)).reshape(k, k)
    order = torch.randperm(k, generator=torch.Generator().manual_seed(2))
    own = OwnedMatrix.scaled(matrix, 2.0)
    assert torch.equal(own[order][:, order].as_subclass(torch.Tensor), 2 * matrix[order][:, order])


def test_other_operations_are_torchs_and_leave_it_alone() -> None:
    matrix = torch.arange(16.0).reshape(4, 4)
    own = OwnedMatrix.scaled(matrix, 1.0)
    few = torch.tensor([2, 0])
    assert torch.equal(own[few], matrix[few])
    assert torch.equal(own[1], matrix[1])
    assert torch.equal(own[:, few], matrix[:, few])
    assert torch.equal(own[own > 3], matrix[matrix > 3])
    assert torch.equal(torch.diag(own), torch.diag(matrix))
    assert type(own.diagonal()) is type(own @ own) is torch.Tensor
    assert torch.equal(own.plain, matrix)
    dead = torch.diag(own) == 0
    own[dead, dead] = 1
    assert own.plain[0, 0] == 1
