"""Vectors of categories, against sums over all their values."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import kl_divergence

from pvae.core.errors import InputError
from pvae.core.random_state import seeded
from pvae.distributions.discrete import OneHotVector, codes, num_codes, rate_of_each
from pvae.models.posteriors import bits


def test_a_vector_of_categories_is_what_the_sum_over_its_values_says():
    draw = torch.Generator().manual_seed(0)
    q, p = (OneHotVector(torch.randn(2, 6, generator=draw, dtype=torch.float64), 3) for _ in range(2))
    z = codes(q)
    assert z.shape == (9, 6)
    assert num_codes(q) == 9
    assert (z.view(9, 2, 3).sum(-1) == 1).all()
    log_q, log_p = (one.log_prob(z[:, None]) for one in (q, p))
    weight = log_q.exp()
    close = torch.testing.assert_close
    close(weight.sum(0), torch.ones(2).double())
    close(q.mean, weight.T @ z)
    close(q.variance, weight.T @ z.square() - (weight.T @ z).square())
    close(q.entropy(), -(weight * log_q).sum(0))
    close(kl_divergence(q, p), (weight * (log_q - log_p)).sum(0))
    close(q.expand([4, 2]).log_prob(z[:4, None]), log_q[:4])
    with seeded(0):
        drawn = q.sample((40_000,))
    assert ((drawn.mean(0) - q.mean).abs() < 5 * (q.variance / 40_000).sqrt()).all()  # once in 2e5 samples


def test_a_class_of_probability_0_has_no_nan_and_too_many_codes_are_refused():
    one = OneHotVector(torch.tensor([0.0, -torch.inf, 0.0]), 3)
    assert one.log_prob(torch.tensor([1.0, 0, 0])).item() == pytest.approx(-0.6931, abs=1e-4)
    assert one.log_prob(torch.tensor([0.0, 1, 0])) < -1e30
    with pytest.raises(InputError):
        codes(OneHotVector(torch.zeros(50), 10))
    with pytest.raises(InputError):
        codes(torch.distributions.Normal(torch.zeros(2), 1))


def test_the_rate_of_bits_is_the_sum_over_codes_and_finite_where_a_probability_rounds_to_1():
    draw = torch.Generator().manual_seed(0)
    q, p = (bits(torch.randn(2, 5, generator=draw, dtype=torch.float64)) for _ in range(2))
    z = codes(q)[:, None]
    log_q, log_p = q.log_prob(z), p.log_prob(z)
    torch.testing.assert_close(kl_divergence(q, p), (log_q.exp() * (log_q - log_p)).sum(0))
    torch.testing.assert_close(rate_of_each(q, p).sum(-1), kl_divergence(q, p))
    always, prior = bits(torch.tensor([[40.0, -2.0]])), bits(torch.tensor([60.0, -200.0])).expand([1])
    expected = torch.sigmoid(torch.tensor(-2.0)) * 198 - torch.log1p(torch.exp(torch.tensor(-2.0)))
    assert kl_divergence(always, prior).item() == pytest.approx(expected.item())
