"""KL divergence and its statistics against independent implementations."""

from __future__ import annotations

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_quant_plugin.evaluate.report import perplexity, quantile, summarize_kl
from vllm_quant_plugin.evaluate.tap import kl_per_token, kl_top_k


def _pair(rows: int = 9, size: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(rows, size, generator=generator) * 3
    other = reference + torch.randn(rows, size, generator=generator)
    return reference.log_softmax(-1), other.log_softmax(-1)


def test_kl_equals_torch_distributions() -> None:
    reference, model = _pair()
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=reference.double()),
        torch.distributions.Categorical(logits=model.double()),
    )
    torch.testing.assert_close(kl_per_token(reference, model), expected, rtol=1e-5, atol=1e-6)
    assert bool((kl_per_token(reference, reference) == 0).all())


def test_top_k_is_a_lower_bound_that_closes() -> None:
    reference, model = _pair()
    full = kl_per_token(reference, model)
    previous = torch.zeros_like(full)
    for k in (1, 5, 20, 49):
        top = reference.topk(k, -1)
        bound = kl_top_k(top.values, top.indices, model)
        # Merging fewer tokens into one never lowers the divergence (data processing inequality).
        assert bool((bound >= previous - 1e-9).all())
        assert bool((bound <= full + 1e-6).all())
        previous = bound
    torch.testing.assert_close(previous, full, rtol=1e-4, atol=1e-6)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=60), st.floats(0, 1))
def test_quantile_equals_numpy(values: list[float], share: float) -> None:
    assert quantile(sorted(values), share) == pytest.approx(float(numpy.quantile(values, share)), rel=1e-9, abs=1e-9)


def test_summary() -> None:
    found = summarize_kl([0.0, 1.0, 2.0, 5.0], [True, True, False, True])
    assert (found.mean, found.median, found.maximum, found.top1_agreement) == (2.0, 1.5, 5.0, 0.75)


def test_perplexity_of_a_uniform_guess_is_the_vocabulary_size() -> None:
    assert perplexity([-numpy.log(7)] * 12) == pytest.approx(7)
