"""Pareto k against tails whose k is known, and against those of ArviZ."""

from __future__ import annotations

import math

import pytest
import torch

from pvae.core.random_state import seeded
from pvae.marginal.importance import from_weights, num_in_tail, pareto_k, trusted_below


def k_of(log_w):
    return pareto_k(log_w.topk(num_in_tail(len(log_w)) + 1, 0).values)


@pytest.mark.parametrize("k", [0.2, 0.5, 0.9])
def test_a_pareto_tail_is_found(k):
    """20 samples of w = u^-k; the mean of their fits has a standard error of about 0.01."""
    with seeded(0):
        log_w = -k * torch.rand(50_000, 20, dtype=torch.float64).log()
    assert k_of(log_w).mean() == pytest.approx(k, abs=0.05)


def test_a_proposal_that_is_too_narrow_has_the_tail_that_theory_says():
    """Of Normal(0, 1) from Normal(0, s^2) k is 1 - s^2, and of a wider proposal the weights are bounded."""
    with seeded(1):
        z = torch.randn(20_000, 20, dtype=torch.float64)
    for scale in (0.5, 0.7):
        log_w = -0.5 * (scale * z).square() + 0.5 * z.square()
        assert k_of(log_w).mean() == pytest.approx(1 - scale**2, abs=0.12)
    assert k_of(-0.5 * (1.5 * z).square() + 0.5 * z.square()).mean() < 0


def test_the_ends():
    equal = torch.zeros(1000, 2)
    assert (k_of(equal) == -math.inf).all()
    assert (k_of(torch.tensor([[0.0], [1.0]]).repeat(5, 1)) == math.inf).all(), "too few to fit"
    equal[0, 1] = torch.nan
    assert k_of(equal)[1].isnan()
    assert trusted_below(5000) == 0.7
    assert trusted_below(100) == 0.5


Z = torch.linspace(-3, 3, 3000, dtype=torch.float64)
WEIGHTS = {  # log-weights, and k by arviz.psislw of version 0.23
    "heavy": (0.6 * Z.square(), -0.744710362),
    "light": (0.1 * Z.square(), -0.860956649),
    "tied": ((2 * Z).round() / 2, -5.69377857),
    "two values": ((Z > 2.9).double(), -4.98802176),
    "underflowing": (1000 * Z, 89.348944),
    "mostly impossible": (Z.where(Z > 2.9, -math.inf), -2.62512218),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_k_is_that_of_arviz(name):
    log_w, expected = WEIGHTS[name]
    assert k_of(log_w[:, None]).item() == pytest.approx(expected, rel=1e-5)


def test_equal_weights_are_trusted_whatever_their_rounding():
    with seeded(3):
        log_w = -500 + 1e-6 * torch.randn(5000, 2).double()
    assert (k_of(log_w) == -math.inf).all()
    k = k_of(log_w)
    sample = from_weights(log_w.logsumexp(0), (2 * log_w).logsumexp(0), 5000, math.inf * k.abs())
    assert sample.is_trusted.all(), "since more than half of them are effective"
